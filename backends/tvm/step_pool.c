/* The threads of a step: workers that wait for the next one, and the barrier between its phases.

   Waiting spins for a moment and then sleeps in the kernel (futex). Spinning is what makes a barrier
   cheap where every thread has a CPU of its own; sleeping is what keeps a step from standing still
   where it has not: a waiting thread gives its CPU to the one that it waits for.

   A pool belongs to one engine. It remembers its process: in a forked child it starts threads anew.
   After the phases each thread looks for the largest logit in its share of every sampled row.

   The compiler defines ARGUMENT_TYPES and ARGUMENTS(p), the pointers of an entry, of which BATCH,
   LOGITS and ARENA are used here, and VOCABULARY, the logits of a row. */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define LINE 64
#define STACK_BYTES (8u << 20)
#define LINES_AT_ONCE 4 /* asked for before a waiting thread looks again */

enum { RUNNING = -2, NO_THREADS = -3 };  /* what gw_run returns besides the entry's own status */

typedef struct Pool Pool;
typedef int32_t (*Entry)(int32_t thread, int32_t threads, int32_t alone, Pool *pool, void *own,
                         ARGUMENT_TYPES);

typedef struct {
  Pool *pool;
  int32_t number;
} Worker;

typedef struct {
  float value;
  int32_t index; /* -1: a logit is NaN */
} Largest;

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
enum { LANES = 8 };

extern const int32_t gw_most_phases; /* of an entry of this library */

struct Pool {
  int32_t threads, started, spins_in_step, spins_between, alone_rows, phases;
  pid_t process;
  size_t own_bytes; /* memory of each thread for values that it computes for itself */
  char *own;
  Worker *workers;
  pthread_t *handles;
  Entry entry;
  void **pointers;
  int32_t alone, wanted; /* wanted: rows whose largest logit is */
  atomic_uint *taken;    /* [threads][phases]: parts of each thread in the step, see TAKEN */
  Largest *largest;      /* [rows][threads] */
  atomic_int status, running, stopping;
  _Alignas(LINE) atomic_uint launches; /* rises with each step */
  atomic_int launch_sleepers;
  _Alignas(LINE) atomic_uint arrived; /* at the barrier that is next */
  _Alignas(LINE) atomic_uint barriers; /* rises with each barrier passed */
  atomic_int barrier_sleepers;
};

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void sleep_while(atomic_uint *word, unsigned value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, 0, 0, 0);
}

static void wake_all(atomic_uint *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}

/* Returns once *word differs from `value`. Who changes it stores the word, then looks for sleepers;
   who sleeps counts itself, then looks at the word: one of them sees the other. */
static void await_change(atomic_uint *word, unsigned value, atomic_int *sleepers, int32_t spins) {
  for (int32_t i = 0; i < spins; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != value) return;
    relax();
  }
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == value) sleep_while(word, value);
  atomic_fetch_sub(sleepers, 1);
}

/* Returns once all threads have come here. Who waits asks for the lines of [next, end) in the
   meantime, so that the memory does not wait too. */
EXPORTED int32_t gw_barrier(Pool *pool, const char *next, const char *end) {
  if (pool->threads == 1) return 0;
  unsigned passed = atomic_load_explicit(&pool->barriers, memory_order_relaxed);
  unsigned before = atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel);
  if (before + 1 == (unsigned)pool->threads) {
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    atomic_store(&pool->barriers, passed + 1);
    if (atomic_load(&pool->barrier_sleepers)) wake_all(&pool->barriers);
  } else {
    while (next < end) {
      if (atomic_load_explicit(&pool->barriers, memory_order_acquire) != passed) return 0;
      for (int32_t i = 0; i < LINES_AT_ONCE; i++, next += LINE) __builtin_prefetch(next, 0, 2);
    }
    await_change(&pool->barriers, passed, &pool->barrier_sleepers, pool->spins_in_step);
  }
  return 0;
}

/* A thread's parts of a phase are taken from both ends: by itself from the front, in the order in
   which they lie in memory, and by threads without parts of their own from the back. */
#define TAKEN(front, back) ((front) | (back) << 16)

/* The next part of a phase for this thread, of `each` a thread; -1: all are taken. */
EXPORTED int32_t gw_take_part(Pool *pool, int32_t phase, int32_t thread, int32_t each) {
  for (int32_t i = 0; i < pool->threads; i++) {
    int32_t owner = (thread + i) % pool->threads;
    atomic_uint *word = pool->taken + (size_t)owner * (size_t)pool->phases + phase;
    unsigned taken = atomic_load_explicit(word, memory_order_relaxed);
    for (;;) {
      int32_t front = (int32_t)(taken & 0xffff), back = (int32_t)(taken >> 16);
      if (front + back >= each) break;
      unsigned after = i ? TAKEN(front, back + 1) : TAKEN(front + 1, back);
      if (atomic_compare_exchange_weak_explicit(word, &taken, after, memory_order_relaxed,
                                                memory_order_relaxed))
        return owner * each + (i ? each - 1 - back : front);
    }
  }
  return -1;
}

/* The first of the largest logits in row[first, last); -infinity where there are none. */
static Largest find_largest(const float *row, int32_t first, int32_t last) {
  Largest found = {-__builtin_inff(), first};
  Floats most = {0}, block;
  Ints odd = {0};
  int32_t i = first, strange = 0;
  most += found.value;
  for (; i + LANES <= last; i += LANES) {
    memcpy(&block, row + i, sizeof block);
    Ints larger = block > most;
    most = (Floats)((larger & (Ints)block) | (~larger & (Ints)most));
    odd |= block != block;
  }
  for (int lane = 0; lane < LANES; lane++) {
    if (most[lane] > found.value) found.value = most[lane];
    strange |= odd[lane];
  }
  for (; i < last; i++) {
    if (row[i] > found.value) found.value = row[i];
    strange |= row[i] != row[i];
  }
  if (strange) return (Largest){found.value, -1};
  while (found.index < last && row[found.index] != found.value) found.index++;
  return found;
}

static void find_largest_of_rows(Pool *pool, int32_t thread) {
  const float *logits = pool->pointers[LOGITS];
  int32_t first = (int32_t)((int64_t)VOCABULARY * thread / pool->threads);
  int32_t last = (int32_t)((int64_t)VOCABULARY * (thread + 1) / pool->threads);
  for (int32_t row = 0; row < pool->wanted; row++)
    pool->largest[row * pool->threads + thread] =
        find_largest(logits + (size_t)row * VOCABULARY, first, last);
}

static void join_largest(Pool *pool, int32_t *chosen) {
  for (int32_t row = 0; row < pool->wanted; row++) {
    const Largest *parts = pool->largest + row * pool->threads;
    Largest best = parts[0];
    for (int32_t i = 1; i < pool->threads && best.index >= 0; i++)
      if (parts[i].index < 0 || parts[i].value > best.value) best = parts[i];
    chosen[row] = best.index;
  }
}

static void take_part(Pool *pool, int32_t number) {
  void **pointers = pool->pointers;
  void *own = pool->alone ? pool->own + pool->own_bytes * (size_t)number : pointers[ARENA];
  int32_t status =
      pool->entry(number, pool->threads, pool->alone, pool, own, ARGUMENTS(pointers));
  if (status) atomic_store(&pool->status, status);
  if (pool->wanted) {
    gw_barrier(pool, 0, 0);
    find_largest_of_rows(pool, number);
  }
  gw_barrier(pool, 0, 0);
}

static void *work(void *given) {
  Worker *worker = given;
  Pool *pool = worker->pool;
  for (unsigned seen = 0;; seen++) {
    await_change(&pool->launches, seen, &pool->launch_sleepers, pool->spins_between);
    if (atomic_load(&pool->stopping)) return 0;
    take_part(pool, worker->number);
  }
}

/* Signals are left to the threads of the program. */
static int start(Pool *pool) {
  sigset_t all, old;
  pthread_attr_t attributes;
  atomic_store(&pool->launches, 0);
  atomic_store(&pool->launch_sleepers, 0);
  atomic_store(&pool->arrived, 0);
  atomic_store(&pool->barrier_sleepers, 0);
  atomic_store(&pool->running, 0);
  pool->process = getpid();
  pool->started = 1;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  int failed = 0;
  for (; !failed && pool->started < pool->threads; pool->started += !failed) {
    Worker *worker = pool->workers + pool->started;
    *worker = (Worker){pool, pool->started};
    failed = pthread_create(pool->handles + pool->started, &attributes, work, worker);
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &old, 0);
  return failed;
}

static void stop(Pool *pool) {
  atomic_store(&pool->stopping, 1);
  atomic_fetch_add(&pool->launches, 1);
  wake_all(&pool->launches);
  for (int32_t i = 1; i < pool->started; i++) pthread_join(pool->handles[i], 0);
  atomic_store(&pool->stopping, 0);
  pool->started = 0;
}

static void release(Pool *pool) {
  if (pool->own) munmap(pool->own, pool->own_bytes * (size_t)pool->threads);
  free(pool->workers);
  free(pool->taken);
  free(pool->largest);
  free(pool->handles);
  free(pool);
}

/* A pool of `threads`, the caller of gw_run among them, or NULL with errno. Steps of at most
   `alone_rows` tokens may have small phases computed by every thread for itself, in `own_bytes`. A
   step samples up to `rows` rows and has up to `phases` phases, also one of another library. */
EXPORTED Pool *gw_create_for(int32_t phases, int32_t threads, size_t own_bytes, int32_t alone_rows,
                             int32_t rows, int32_t spins_in_step, int32_t spins_between) {
  Pool *pool = aligned_alloc(LINE, (sizeof(Pool) + LINE - 1) / LINE * LINE);
  if (!pool) return 0;
  memset(pool, 0, sizeof(Pool));
  pool->threads = threads;
  pool->alone_rows = threads > 1 ? alone_rows : 0;
  pool->spins_in_step = spins_in_step;
  pool->spins_between = spins_between;
  pool->phases = phases;
  pool->own_bytes = (own_bytes + 4095) / 4096 * 4096 + 4096;
  pool->workers = calloc((size_t)threads, sizeof(Worker));
  pool->handles = calloc((size_t)threads, sizeof(pthread_t));
  pool->taken = calloc((size_t)threads * (size_t)pool->phases, sizeof *pool->taken);
  pool->largest = calloc((size_t)threads * (size_t)rows, sizeof(Largest));
  void *memory = mmap(0, pool->own_bytes * (size_t)threads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  pool->own = memory == MAP_FAILED ? 0 : memory;
  int complete = pool->workers && pool->taken && pool->handles && pool->largest && pool->own;
  int failed = complete ? start(pool) : ENOMEM;
  if (!failed) return pool;
  stop(pool);
  release(pool);
  errno = failed;
  return 0;
}

/* A pool for the entries of this library. */
EXPORTED Pool *gw_create(int32_t threads, size_t own_bytes, int32_t alone_rows, int32_t rows,
                         int32_t spins_in_step, int32_t spins_between) {
  return gw_create_for(gw_most_phases, threads, own_bytes, alone_rows, rows, spins_in_step,
                       spins_between);
}

/* One step: `entry` on every thread of the pool. Returns 0, or what went wrong.

   chosen: NULL, or for each sampled row the first of its largest logits, -1 if one is NaN. */
EXPORTED int32_t gw_run(Pool *pool, Entry entry, void **pointers, int32_t *chosen) {
  if (pool->process != getpid() && start(pool)) {
    pool->process = 0;
    return NO_THREADS;
  }
  if (atomic_exchange(&pool->running, 1)) return RUNNING;
  const int32_t *batch = pointers[BATCH];
  pool->entry = entry;
  pool->pointers = pointers;
  pool->alone = batch[0] <= pool->alone_rows;
  pool->wanted = chosen ? batch[3] : 0;
  memset(pool->taken, 0, sizeof *pool->taken * (size_t)pool->threads * (size_t)pool->phases);
  atomic_store(&pool->status, 0);
  atomic_fetch_add(&pool->launches, 1);
  if (atomic_load(&pool->launch_sleepers)) wake_all(&pool->launches);
  take_part(pool, 0);
  join_largest(pool, chosen);
  int32_t status = atomic_load(&pool->status);
  atomic_store(&pool->running, 0);
  return status;
}

/* Ends the threads of the pool, unless they are another process's. */
EXPORTED void gw_destroy(Pool *pool) {
  if (pool->process == getpid()) stop(pool);
  release(pool);
}

/* Keeps worker `number` (not 0, the caller) on one CPU. 0 or an error number. */
EXPORTED int32_t gw_pin(Pool *pool, int32_t number, int32_t cpu) {
  cpu_set_t set;
  if (number < 1 || number >= pool->started) return EINVAL;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return pthread_setaffinity_np(pool->handles[number], sizeof set, &set);
}
