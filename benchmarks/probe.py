"""How fast this machine reads memory right now: a read-only kernel over two pinned threads."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Probe"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
typedef uint64_t vector __attribute__((vector_size(64)));
static char *memory; static size_t bytes; static int threads; static volatile uint64_t sink;
static double now(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec;
}
static void *reader(void *argument) {
  long id = (long)argument; cpu_set_t set; CPU_ZERO(&set); CPU_SET(id, &set);
  sched_setaffinity(0, sizeof set, &set);
  vector a = {0}, b = {0}, c = {0}, d = {0};
  const vector *p = (const vector *)(memory + bytes / threads * id);
  for (size_t i = 0; i + 4 <= bytes / threads / sizeof(vector); i += 4) {
    a += p[i]; b += p[i + 1]; c += p[i + 2]; d += p[i + 3];
  }
  a += b + c + d; sink += a[0]; return 0;
}
int main(int count, char **arguments) {
  threads = atoi(arguments[1]); bytes = (size_t)atol(arguments[2]) << 20;
  double seconds = atof(arguments[3]);
  if (posix_memalign((void **)&memory, 1 << 21, bytes)) return 1;
  for (size_t i = 0; i < bytes; i += 64) memory[i] = (char)i;
  char line[16];
  while (fgets(line, sizeof line, stdin)) {
    pthread_t ids[64]; double start = now(); int passes = 0;
    do {
      for (long i = 0; i < threads; i++) pthread_create(ids + i, 0, reader, (void *)i);
      for (int i = 0; i < threads; i++) pthread_join(ids[i], 0);
      passes++;
    } while (now() - start < seconds);
    printf("%f\n", passes * (double)bytes / (now() - start) / 1e9); fflush(stdout);
  }
}
"""


class Probe:
    """A compiled reader that waits between measurements. Needs a C compiler.

    threads: each pinned to a core of its own. Each measurement lasts `seconds` or a little more.
    """

    def __init__(self, threads: int, mebibytes: int = 256, seconds: float = 0.1) -> None:
        self._folder = tempfile.TemporaryDirectory()
        source = Path(self._folder.name) / "probe.c"
        source.write_text(_SOURCE)
        program = source.with_suffix("")
        subprocess.run(["cc", "-O3", "-march=native", "-pthread", str(source), "-o", str(program)],
                       check=True)  # fmt: skip
        command = [program, *map(str, (threads, mebibytes, seconds))]
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def measure(self) -> float:
        """Bytes read per second, in GB/s."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the reader."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


if __name__ == "__main__":
    probe = Probe(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(" ".join(f"{probe.measure():.1f}" for _ in range(10)), "GB/s")
    probe.close()
