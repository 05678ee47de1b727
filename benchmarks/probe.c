/* Reads memory and does nothing else, on threads that stay on their CPUs.

   Threads are made once and sleep between turns. In a turn each reads its share over and over, on its
   own: nobody waits for the slowest. The first pass of a turn is not counted. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { MOST = 64, LINE = 64 };
typedef uint64_t vector __attribute__((vector_size(32)));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int threads, turn, working;
static const char *memory;
static size_t share;
static int streams, ahead;
static double length, rates[MOST];
static volatile uint64_t sink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One pass over `size` bytes in `count` streams side by side, prefetching `distance` bytes. */
static inline __attribute__((always_inline)) size_t pass(const char *from, size_t size, int count,
                                                         int distance) {
  size_t each = size / (size_t)count / LINE * LINE;
  vector sums[16] = {{0}};
  for (size_t at = 0; at < each; at += LINE) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
      const char *line = from + (size_t)i * each + at;
      if (distance) __builtin_prefetch(line + distance, 0, 3);
      sums[2 * i] ^= *(const vector *)line;
      sums[2 * i + 1] ^= *(const vector *)(line + 32);
    }
  }
  vector total = {0};
  for (int i = 0; i < 2 * count; i++) total ^= sums[i];
  sink ^= total[0] ^ total[1] ^ total[2] ^ total[3];
  return each * (size_t)count;
}

static size_t read_once(const char *from, size_t size) {
#define WITH(count)                                                   \
  (ahead == 0      ? pass(from, size, count, 0)                       \
   : ahead == 1024 ? pass(from, size, count, 1024)                    \
   : ahead == 4096 ? pass(from, size, count, 4096)                    \
                   : pass(from, size, count, 8192))
  switch (streams) {
    case 1: return WITH(1);
    case 2: return WITH(2);
    case 4: return WITH(4);
    default: return WITH(8);
  }
}

static void *reader(void *argument) {
  int number = (int)(intptr_t)argument, seen = 0;
  for (;;) {
    pthread_mutex_lock(&lock);
    while (turn == seen) pthread_cond_wait(&changed, &lock);
    seen = turn;
    pthread_mutex_unlock(&lock);
    const char *from = memory + share * (size_t)number;
    read_once(from, share);
    double start = now(), passed;
    size_t bytes = 0;
    do {
      bytes += read_once(from, share);
      passed = now() - start;
    } while (passed < length);
    rates[number] = (double)bytes / passed;
    pthread_mutex_lock(&lock);
    if (--working == 0) pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
  }
  return 0;
}

/* Starts `count` threads, number i on CPU cpus[i]. 0, or the error of the system. */
int probe_start(int count, const int *cpus) {
  threads = count;
  for (int i = 0; i < count; i++) {
    pthread_t id;
    cpu_set_t set;
    int error = pthread_create(&id, 0, reader, (void *)(intptr_t)i);
    if (error) return error;
    CPU_ZERO(&set);
    CPU_SET(cpus[i], &set);
    error = pthread_setaffinity_np(id, sizeof set, &set);
    if (error) return error;
    pthread_detach(id);
  }
  return 0;
}

/* Bytes a second of one turn over [from, from + bytes), which starts at a multiple of 64. */
double probe_read(const char *from, size_t bytes, int stream_count, int prefetch, double seconds) {
  pthread_mutex_lock(&lock);
  memory = from, share = bytes / (size_t)threads / 4096 * 4096;
  streams = stream_count, ahead = prefetch, length = seconds;
  working = threads, turn++;
  pthread_cond_broadcast(&changed);
  while (working) pthread_cond_wait(&changed, &lock);
  double total = 0;
  for (int i = 0; i < threads; i++) total += rates[i];
  pthread_mutex_unlock(&lock);
  return total;
}
