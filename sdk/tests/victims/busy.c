/* Computes with integer and vector registers, and checks itself. Usage: busy WHERE THREADS
 * WHERE main: the main thread computes and another one is blocked in read; read: the other way round;
 * epoll, sleep: the main thread is blocked in these calls; alone: it sleeps, and there is no other; idle: the main thread
 * reads, and no one computes. Prints addresses of what tests need; a wrong result is printed and
 * ends it. Whatever comes on stdin is echoed by the thread that reads. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

volatile uint64_t rounds;
volatile uint64_t interrupts; /* of epoll_wait */

__asm__(".globl trap\ntrap: int3\n");
extern char trap[];

__attribute__((noinline)) long add(long a, long b) { return a + b + 1; }
__attribute__((noinline)) long segv(void) { return *(volatile long *)8; }
__attribute__((noinline)) long slow(long n)
{
    volatile long x = 0;
    for (long i = 0; i < n; i++)
        x += i;
    return x;
}
/* Like an IFUNC's resolver. */
__attribute__((noinline)) void *resolve(void) { return (void *)add; }
/* Changes all vector registers that a function may change. */
__attribute__((noinline)) void *vectors(void)
{
    __asm__ volatile("pcmpeqd %%xmm0,%%xmm0; pcmpeqd %%xmm7,%%xmm7; pcmpeqd %%xmm8,%%xmm8; pcmpeqd %%xmm15,%%xmm15" ::
                         : "xmm0", "xmm7", "xmm8", "xmm15");
    return (void *)vectors;
}

static void bad(const char *what)
{
    fprintf(stderr, "BAD %s\n", what);
    printf("BAD %s\n", what);
    fflush(stdout);
    _exit(3);
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    ucontext_t *c = context;
    fprintf(stderr, "at %llx address %p sp %llx\n", c->uc_mcontext.gregs[REG_RIP], info->si_addr,
            c->uc_mcontext.gregs[REG_RSP]);
    bad("fault");
}

/* One round: the same computation in general and in vector registers, in leaf code that uses the red zone. */
__attribute__((noinline)) static uint64_t leaf(uint64_t seed)
{
    uint64_t a = seed, b = seed * 3, c = seed ^ 0x5555;
    volatile uint64_t zone[12];
    for (int i = 0; i < 12; i++)
        zone[i] = seed + i;
    double x = 1, y = 2, z = 3, w = 4;
    for (int i = 0; i < 2000; i++) {
        a = a * 6364136223846793005u + 1442695040888963407u;
        b ^= a >> 13;
        c += b << 7;
        x = x * 1.0000001 + 0.5;
        y = y + x * 0.25;
        z = z - y * 0.125;
        w = w + z * 0.0625;
    }
    for (int i = 0; i < 12; i++)
        a += zone[i] - i - seed;
    uint64_t bits;
    double sum = x + y + z + w;
    memcpy(&bits, &sum, 8);
    return a ^ b ^ c ^ bits;
}

static void *compute(void *unused)
{
    uint64_t expected = leaf(1);
    for (;;) {
        if (leaf(1) != expected)
            bad("result");
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, 0, &now);
        if (!sigismember(&now, SIGUSR1) || sigismember(&now, SIGTERM))
            bad("mask");
        rounds++;
    }
    return unused;
}

static void *echo(void *unused)
{
    char buf[64];
    for (;;) {
        ssize_t n = read(0, buf, sizeof buf);
        if (n < 0)
            bad(strerror(errno));
        if (n == 0)
            exit(0);
        if (write(1, buf, n) != n)
            bad("write");
    }
    return unused;
}

static void *idle(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    const char *where = argc > 1 ? argv[1] : "main";
    int threads = argc > 2 ? atoi(argv[2]) : 0;
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, 0);
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &fault, 0);
    pthread_t t;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * 1024);
    for (int i = 0; i < threads; i++)
        pthread_create(&t, &attr, idle, 0);
    if (strcmp(where, "idle") && strcmp(where, "alone"))
        pthread_create(&t, 0, strcmp(where, "main") ? compute : echo, 0);
    printf("%p %p %p %p %p %p %p %p\n", (void *)&rounds, (void *)trap, (void *)add, (void *)segv, (void *)slow,
           (void *)vectors, (void *)&interrupts, (void *)resolve);
    fflush(stdout);
    if (!strcmp(where, "main"))
        compute(0);
    if (!strcmp(where, "read") || !strcmp(where, "idle"))
        echo(0);
    if (!strcmp(where, "sleep") || !strcmp(where, "alone")) {
        if (!strcmp(where, "sleep"))
            pthread_create(&t, 0, echo, 0);
        int r = nanosleep(&(struct timespec){3600, 0}, 0);
        bad(r ? "nanosleep interrupted" : "nanosleep ended");
    }
    struct epoll_event ev = {.events = EPOLLIN};
    int e = epoll_create1(0);
    epoll_ctl(e, EPOLL_CTL_ADD, 0, &ev);
    for (;;) {
        int n = epoll_wait(e, &ev, 1, -1);
        if (n < 0 && errno == EINTR) {
            interrupts++;
            continue;
        }
        if (n != 1)
            bad("epoll_wait");
        char buf[64];
        ssize_t len = read(0, buf, sizeof buf);
        if (len <= 0)
            exit(0);
        if (write(1, buf, len) != len)
            bad("write");
    }
}
