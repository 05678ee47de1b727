/* How a thread runs an entry, which is a table of phases: kernels, where their operands lie, and
   whether threads meet afterwards. The tables follow behind this text (entries.py).

   The compiler defines MOST, the most operands of a phase, and BATCH, the base that holds the batch
   header. */

#include <stdint.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))

typedef struct Pool Pool;
typedef void Kernel(void); /* (thread, threads, rows, pointers...), as many as a Caller passes */
typedef int32_t Caller(Kernel *kernel, int32_t thread, int32_t threads, int32_t rows,
                       void **pointers);

typedef struct {
  int32_t base; /* a parameter of the entry, or behind them the memory of the thread itself */
  int64_t offset;
} Operand;

typedef struct {
  Kernel *kernel;
  Caller *call;
  int32_t first, operands; /* its place among the operands of the entry, and how many */
  int32_t rows;            /* which number of the batch header says for how many rows */
  int32_t replicated;      /* in a small step each thread does all of it */
  int32_t parts;           /* into how many it may be cut, for threads to take */
  int32_t meet;            /* threads meet after it in a small step too */
  int32_t streamed;        /* which operand each thread reads its share of, from front to back */
  int32_t adapters;        /* left out where no token has one */
  int64_t bytes;           /* of that operand; 0: there is none */
} Phase;

/* At most. A part of 0.1 to 0.4 MB takes 10 to 20 us, as long as others may wait for the last. */
enum { PARTS_OF_A_THREAD = 64, PARTS = 256 };
enum { AHEAD = 256 << 10 }; /* bytes that a waiting thread asks for, half of a small L2 cache */
enum { CHOSEN = 7 };        /* which number of the batch header says whether any token has an adapter */

int32_t gw_barrier(Pool *pool, const char *next, const char *end);
int32_t gw_take_part(Pool *pool, int32_t phase, int32_t thread, int32_t each);

static int64_t *marks;
static int32_t row_length;

/* Where steps write the clock, in ns of CLOCK_MONOTONIC, a row of `length` for each thread: the
   start of its entry, then after each phase when its kernel was done and when the others were. 0:
   nowhere. Not while a step runs. */
EXPORTED void gw_clock(int64_t *buffer, int32_t length) {
  marks = buffer;
  row_length = length;
}

static inline void mark(int32_t thread, int32_t number) {
  if (!marks || number >= row_length) return;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  marks[(int64_t)thread * row_length + number] = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* All of a phase that this thread is to do: its share, or part by part what nobody has begun. Parts
   are the same however many of them a thread takes, so that the result does not depend on it. */
static int32_t run_phase(const Phase *phase, int32_t number, int32_t thread, int32_t threads,
                         int32_t rows, Pool *pool, void **pointers) {
  int32_t status = 0, part, each = phase->parts / threads;
  if (each > PARTS_OF_A_THREAD) each = PARTS_OF_A_THREAD;
  if (each > PARTS / threads) each = PARTS / threads;
  if (threads == 1 || each < 2)
    return phase->call(phase->kernel, thread, threads, rows, pointers);
  while ((part = gw_take_part(pool, number, thread, each)) >= 0)
    status |= phase->call(phase->kernel, part, each * threads, rows, pointers);
  return status;
}

/* Where a waiting thread may read ahead: the start of its share of what is streamed next. */
static const char *read_next(const Phase *phase, const Phase *last, const Operand *operands,
                             int32_t thread, int32_t threads, char *const *bases,
                             const char **end) {
  while (phase < last && !phase->bytes) phase++;
  if (phase == last) return *end = 0;
  const Operand *operand = operands + phase->first + phase->streamed;
  const char *all = bases[operand->base] + operand->offset;
  const char *start = all + phase->bytes * thread / threads;
  *end = all + phase->bytes * (thread + 1) / threads;
  if (*end - start > AHEAD) *end = start + AHEAD;
  return start;
}

/* Threads meet behind `phase`; in a small step those that wait read ahead. */
static void meet(const Phase *phase, const Phase *last, const Operand *operands, int32_t thread,
                 int32_t threads, int32_t alone, Pool *pool, char *const *bases) {
  const char *end = 0, *next = 0;
  if (alone) next = read_next(phase + 1, last, operands, thread, threads, bases, &end);
  gw_barrier(pool, next, end);
}

static int32_t run_phases(const Phase *phases, int32_t count, const Operand *operands,
                          int32_t thread, int32_t threads, int32_t alone, Pool *pool,
                          char *const *bases) {
  const int32_t *batch = (const int32_t *)bases[BATCH];
  int32_t status = 0, owed = 0; /* are threads still to meet behind phases that were left out? */
  mark(thread, 0);
  for (int32_t i = 0; i < count; i++) {
    const Phase *phase = phases + i;
    if (phase->adapters && !batch[CHOSEN]) {
      owed |= alone && phase->meet;
      mark(thread, 2 * i + 1);
      mark(thread, 2 * i + 2);
      continue;
    }
    if (owed) meet(phase - 1, phases + count, operands, thread, threads, alone, pool, bases);
    owed = 0;
    int32_t rows = batch[phase->rows], all = alone && phase->replicated;
    if (rows > 0) { /* a step may sample no row */
      void *pointers[MOST];
      for (int32_t k = 0; k < phase->operands; k++) {
        const Operand *operand = operands + phase->first + k;
        pointers[k] = bases[operand->base] + operand->offset;
      }
      status |= all ? phase->call(phase->kernel, 0, 1, rows, pointers)
                    : run_phase(phase, i, thread, threads, rows, pool, pointers);
    }
    mark(thread, 2 * i + 1);
    if (i + 1 < count && (phase->meet || !alone))
      meet(phase, phases + count, operands, thread, threads, alone, pool, bases);
    mark(thread, 2 * i + 2);
  }
  return status;
}
