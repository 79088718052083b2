/* Blocks in one system call, whose event comes when a line arrives on stdin. Prints the outcome.
 * Usage: calls MODE */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char *mode;
static int is(const char *m) { return strcmp(mode, m) == 0; }
static int pipes[2], pairs[2], listener, epoll, sem, word;
static struct sockaddr_un name = {.sun_family = AF_UNIX};
static socklen_t name_len = sizeof name;
static pthread_t main_thread;
static volatile int handled;

static void handler(int sig) { handled += sig == SIGUSR2; }

static void *trigger(void *unused)
{
    char line[16];
    if (!fgets(line, sizeof line, stdin))
        exit(1);
    if (is("accept"))
        connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, name_len);
    else if (is("futex"))
        syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    else if (is("semop"))
        semop(sem, &(struct sembuf){0, 1, 0}, 1);
    else if (is("sigwaitinfo"))
        pthread_kill(main_thread, SIGUSR1);
    else if (is("recv"))
        (void)!write(pairs[1], "x", 1);
    else if (!is("nanosleep") && !strstr(mode, "handler"))
        (void)!write(pipes[1], "x", 1);
    return unused;
}

int main(int argc, char **argv)
{
    mode = argc > 1 ? argv[1] : "";
    main_thread = pthread_self();
    char buf[16];
    struct epoll_event ev = {.events = EPOLLIN};
    (void)!pipe(pipes);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pairs);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&name, sizeof(sa_family_t));
    listen(listener, 1);
    getsockname(listener, (struct sockaddr *)&name, &name_len);
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &ev);
    sem = semget(IPC_PRIVATE, 1, 0600);
    setsockopt(pairs[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){60, 0}, sizeof(struct timeval));
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, 0);
    struct sigaction sa = {.sa_handler = handler};
    sigaction(SIGUSR2, &sa, 0);
    /* The handler is for the main thread alone. */
    sigset_t usr2;
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &usr2, 0);
    pthread_t other;
    pthread_create(&other, 0, trigger, 0);
    pthread_sigmask(SIG_UNBLOCK, &usr2, 0);

    printf("ready\n");
    fflush(stdout);
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    long r = -2;
    errno = 0;
    if (is("read") || is("read-handler"))
        r = read(pipes[0], buf, sizeof buf);
    else if (is("nanosleep"))
        r = nanosleep(&(struct timespec){1, 0}, 0);
    else if (is("accept"))
        r = accept(listener, 0, 0) >= 0;
    else if (is("futex"))
        r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
    else if (is("poll"))
        r = poll(&(struct pollfd){.fd = pipes[0], .events = POLLIN}, 1, 60000);
    else if (is("select")) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(pipes[0], &set);
        r = select(pipes[0] + 1, &set, 0, 0, &(struct timeval){60, 0});
    } else if (is("epoll") || is("epoll-handler"))
        r = epoll_wait(epoll, &ev, 1, -1);
    else if (is("epoll-timed"))
        r = epoll_wait(epoll, &ev, 1, 60000);
    else if (is("semop"))
        r = semop(sem, &(struct sembuf){0, -1, 0}, 1);
    else if (is("sigwaitinfo"))
        r = sigwaitinfo(&usr1, 0) == SIGUSR1;
    else if (is("recv"))
        r = recv(pairs[0], buf, sizeof buf, 0);
    int e = errno;
    clock_gettime(CLOCK_MONOTONIC, &end);
    semctl(sem, 0, IPC_RMID);
    long ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
    printf("%ld %d %d %ld\n", r, r < 0 ? e : 0, handled, ms);
    return 0;
}
