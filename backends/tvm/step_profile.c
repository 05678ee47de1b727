/* Clocks between the phases of a step: what the entries `decode_profile` and `prefill_profile` call
 * and the plain ones do not. Row t of `marks` is thread t's: the start of its entry, then after each
 * phase when its kernel was done and when the others were; in ns of CLOCK_MONOTONIC. */
#include <stdint.h>
#include <time.h>

static int64_t *marks;
static int32_t row_length;

/* Where marks go, a row of `length` for each thread; 0: nowhere. Not while a step runs. */
__attribute__((visibility("default"))) void gw_marks(int64_t *buffer, int32_t length) {
  marks = buffer;
  row_length = length;
}

__attribute__((visibility("default"))) int32_t gw_mark(int32_t thread, int32_t number) {
  if (marks && number < row_length) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    marks[(int64_t)thread * row_length + number] = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
  }
  return 0;
}
