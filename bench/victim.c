/* The program that the benchmark patches. Its first thread does nothing but read the clock and call the function that
 * is replaced; the longest time between two readings is the pause that the program itself sees. The others block.
 *
 * usage: victim FD THREADS      FD: a shared page (struct shared), THREADS: how many more, blocked ones
 */
#define _GNU_SOURCE
#include "shared.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

int base = 1;

/* What the patch replaces. */
__attribute__((noipa)) int answer(void)
{
    return base;
}

/* What the bare stop writes to: never called. */
__attribute__((noipa, aligned(64))) int unused(int x)
{
    return x * 3 + base;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *blocked(void *arg)
{
    struct shared *shared = arg;
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
    for (;;)
        poll(NULL, 0, -1);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: victim FD THREADS\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    shared->scratch = (uint64_t)(uintptr_t)unused;
    int threads = atoi(argv[2]);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, NULL, blocked, shared) != 0) {
            perror("pthread_create");
            return 2;
        }
    }
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);

    uint64_t last = now(), seen = 0;
    for (;;) {
        uint64_t t = now(), gap = t - last;
        uint64_t round = __atomic_load_n(&shared->round, __ATOMIC_ACQUIRE);
        if (round != seen) {
            seen = round;
            shared->max_gap = 0;
        } else if (gap > shared->max_gap) {
            shared->max_gap = gap;
        }
        shared->answer = answer();
        last = t;
    }
}
