/* Performs system calls on the device as the lines of its standard input say, and answers each with a line: what the call
 * returned, the name of the error, and what the kernel wrote.
 *
 * usage: step DEVICE
 *
 * A line is a word and its arguments; STEPS below has all of them. Files are kept in slots that are named by a letter. No
 * size of a type may be assumed here: the same source is compiled for 32 bits. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "memory.h"

enum { SLOTS = 26, DEADLINE_S = 20, SIGNAL_S = 2, PIECES = 1100 };

static const char *device;
static int files[SLOTS];

static void perform(char *line, struct text *out);

#include "words.h"

#include "files.h"
#include "ioctl.h"
#include "transfer.h"
#include "waiting.h"

/* ---- threads */

static void deadline(struct timespec *end, int seconds)
{
    clock_gettime(CLOCK_MONOTONIC, end);
    end->tv_sec += seconds;
}

static bool is_over(const struct timespec *end)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sched_yield();
    return now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec > end->tv_nsec);
}

static struct worker {
    pthread_t thread;
    pid_t id;
    bool started, ended;
    char line[LINE];
    struct text out;
} workers[SLOTS];

/* The worker of that letter; null, which is said, if it was not started. */
static struct worker *worker(char **rest, struct text *out)
{
    struct worker *w = &workers[slot(rest) - files];
    if (!w->started)
        say(out, "? it was not started");
    return w->started ? w : NULL;
}

static void *work(void *argument)
{
    struct worker *w = argument;
    __atomic_store_n(&w->id, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    perform(w->line, &w->out);
    __atomic_store_n(&w->ended, true, __ATOMIC_RELEASE);
    return NULL;
}

static void do_start(char *rest, struct text *out)
{
    struct worker *w = &workers[slot(&rest) - files];
    if (w->started) {
        say(out, "? it is running");
        return;
    }
    w->id = 0;
    w->ended = false;
    w->out.length = 0;
    w->out.bytes[0] = 0;
    snprintf(w->line, sizeof w->line, "%s", rest);
    w->started = pthread_create(&w->thread, NULL, work, w) == 0;
    say(out, "started");
}

/* Whether a thread sleeps in a call that may wait. */
static bool sleeps(pid_t id)
{
    static const long CALLS[] = { SYS_read, SYS_readv, SYS_pread64, SYS_preadv2, SYS_write, SYS_writev, SYS_poll,
        SYS_epoll_wait, SYS_epoll_pwait,
#ifdef SYS_select
        SYS_select,
#endif
#ifdef SYS__newselect
        SYS__newselect,
#endif
        SYS_pselect6,
#ifdef SYS_pselect6_time64
        SYS_pselect6_time64,
#endif
    };
    char path[64], line[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", id);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    long length = read(file, line, sizeof line - 1);
    close(file);
    /* A thread that is not asleep is "running". */
    char *end = line;
    long call = length > 0 ? strtol(line, &end, 10) : -1;
    for (size_t i = 0; end != line && i < sizeof CALLS / sizeof *CALLS; i++)
        if (CALLS[i] == call)
            return true;
    return false;
}

static void do_blocked(char *rest, struct text *out)
{
    struct worker *w = worker(&rest, out);
    struct timespec end;
    deadline(&end, DEADLINE_S);
    while (w && !is_over(&end)) {
        pid_t id = __atomic_load_n(&w->id, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&w->ended, __ATOMIC_ACQUIRE)) {
            say(out, "ended");
            return;
        }
        if (id && sleeps(id)) {
            say(out, "blocked");
            return;
        }
    }
    if (w)
        say(out, "neither blocked nor ended");
}

static bool join(struct worker *w)
{
    struct timespec end;
    deadline(&end, DEADLINE_S);
    while (!__atomic_load_n(&w->ended, __ATOMIC_ACQUIRE))
        if (is_over(&end))
            return false;
    pthread_join(w->thread, NULL);
    w->started = false;
    return true;
}

static void do_join(char *rest, struct text *out)
{
    struct worker *w = worker(&rest, out);
    if (w)
        say(out, "%s", join(w) ? w->out.bytes : "blocked");
}

/* ---- signals and processes */

static struct {
    int count, code;
    long band;
} received;

static void handle(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    received.code = info->si_code;
    received.band = info->si_band;
    __atomic_fetch_add(&received.count, 1, __ATOMIC_RELEASE);
}

static void set_handler(int signal, int flags)
{
    struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | flags };
    sigaction(signal, &action, NULL);
}

static void do_handler(char *rest, struct text *out)
{
    int signal = (int)number(word(&rest), SIGNALS);
    set_handler(signal, !strcmp(word(&rest), "restart") ? SA_RESTART : 0);
    say(out, "ok");
}

static void do_signal(char *rest, struct text *out)
{
    struct worker *w = worker(&rest, out);
    if (w)
        say(out, "%s", pthread_kill(w->thread, (int)number(word(&rest), SIGNALS)) ? "failed" : "ok");
}

/* signals COUNT: waits for so many, tells about them and forgets them */
static void do_signals(char *rest, struct text *out)
{
    int wanted = (int)number(word(&rest), NULL);
    struct timespec end;
    deadline(&end, SIGNAL_S);
    while (__atomic_load_n(&received.count, __ATOMIC_ACQUIRE) < wanted && !is_over(&end))
        continue;
    say(out, "%d", received.count);
    if (received.count && received.code > 0 && received.code != SI_KERNEL)
        say(out, " code=%d band=%#lx", received.code, received.band);
    memset(&received, 0, sizeof received);
}

/* Runs a step in a child, which shares the files. */
static void do_child(char *rest, struct text *out)
{
    int ends[2];
    if (pipe(ends)) {
        say_result(out, -1);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        struct text said = { .length = 0 };
        perform(rest, &said);
        _exit(write(ends[1], said.bytes, said.length) != (long)said.length);
    }
    close(ends[1]);
    char said[LINE];
    long length = read(ends[0], said, sizeof said - 1);
    close(ends[0]);
    waitpid(child, NULL, 0);
    say(out, "%.*s", length > 0 ? (int)length : 0, said);
}

/* Whether all threads of a process are stopped. */
static bool is_stopped(pid_t process)
{
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/task", process);
    DIR *threads = opendir(path);
    bool stopped = threads != NULL;
    for (struct dirent *thread; stopped && (thread = readdir(threads));) {
        if (*thread->d_name == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/stat", process, thread->d_name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        long length = read(file, line, sizeof line - 1);
        close(file);
        line[length > 0 ? length : 0] = 0;
        stopped = strstr(line, ") T ") != NULL;
    }
    if (threads)
        closedir(threads);
    return stopped;
}

/* Another process stops this one, sees all of it stopped, and lets it go on. */
static void do_stop(char *rest, struct text *out)
{
    (void)rest;
    pid_t self = getpid(), child = fork();
    if (child == 0) {
        struct timespec end;
        deadline(&end, DEADLINE_S);
        kill(self, SIGSTOP);
        bool stopped;
        while (!(stopped = is_stopped(self)) && !is_over(&end))
            continue;
        _exit(kill(self, SIGCONT) || !stopped);
    }
    int status = -1;
    waitpid(child, &status, 0);
    say(out, "%s", status ? "failed" : "ok");
}

static void do_euid(char *rest, struct text *out) { say_done(out, seteuid((uid_t)number(word(&rest), NULL))); }
static void do_egid(char *rest, struct text *out) { say_done(out, setegid((gid_t)number(word(&rest), NULL))); }

/* groups NUMBER|none */
static void do_groups(char *rest, struct text *out)
{
    char *name = word(&rest);
    gid_t group = strcmp(name, "none") ? (gid_t)number(name, NULL) : 0;
    say_done(out, setgroups(strcmp(name, "none") != 0, &group));
}

/* Ends threads, closes all, and takes root's ids back. */
static void do_reset(char *rest, struct text *out)
{
    (void)rest;
    if (geteuid() != getuid() && seteuid(getuid()) == 0 && getuid() == 0)
        say_done(out, setegid(0) | setgroups(0, NULL));
    else
        say(out, "ok");
    set_handler(SIGUSR2, 0);
    for (int i = 0; i < SLOTS; i++) {
        while (workers[i].started && !__atomic_load_n(&workers[i].ended, __ATOMIC_ACQUIRE)) {
            pthread_kill(workers[i].thread, SIGUSR2);
            sched_yield();
        }
        if (workers[i].started)
            join(&workers[i]);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (files[i] >= 0)
            close_heard(files[i]);
        files[i] = -1;
    }
    while (crowd_count > 0)
        close(crowd[--crowd_count]);
    memset(&received, 0, sizeof received);
}

static const struct {
    const char *name;
    void (*perform)(char *rest, struct text *out);
} STEPS[] = {
    { "open", do_open }, { "close", do_close }, { "dup", do_dup }, { "pass", do_pass }, { "fcntl", do_fcntl },
    { "lseek", do_lseek }, { "fstat", do_fstat }, { "fdinfo", do_fdinfo }, { "other", do_other }, { "crowd", do_crowd }, { "ioctl", do_ioctl },
    { "hwaddr", do_hwaddr }, { "ebpf", do_ebpf }, { "read", do_read }, { "pread", do_pread }, { "preadv2", do_preadv2 },
    { "readv", do_readv }, { "write", do_write }, { "pwrite", do_pwrite }, { "writev", do_writev }, { "drain", do_drain }, { "poll", do_poll },
    { "select", do_select }, { "epoll", do_epoll }, { "start", do_start }, { "blocked", do_blocked }, { "join", do_join },
    { "handler", do_handler }, { "signal", do_signal }, { "signals", do_signals }, { "child", do_child },
    { "stop", do_stop }, { "euid", do_euid }, { "egid", do_egid }, { "groups", do_groups }, { "reset", do_reset },
};

static void perform(char *line, struct text *out)
{
    const char *name = word(&line);
    for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++)
        if (!strcmp(STEPS[i].name, name)) {
            STEPS[i].perform(line, out);
            return;
        }
    say(out, "? no step %s", name);
}

int main(int count, char **arguments)
{
    static char line[LINE];
    if (count != 2)
        return 2;
    device = arguments[1];
    memset(files, -1, sizeof files);
    while (fgets(line, sizeof line, stdin)) {
        struct text out = { .length = 0 };
        line[strcspn(line, "\n")] = 0;
        perform(line, &out);
        puts(out.bytes);
        fflush(stdout);
    }
    return 0;
}
