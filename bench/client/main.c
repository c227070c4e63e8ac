/* Times calls on a device, the same way for every peer.
 *
 * usage: client ROW [OPTION...]
 *
 *   write      one write of a datagram
 *   read       one read of a queued datagram
 *   cycle      write + poll + read
 *   ping       a datagram to a blocked reader, which writes it back: from send to receive at the far end
 *   attach     memtun: a datagram through an attached socket into a queue that nobody reads meanwhile
 *   json       memtun: likewise as JSON calls, 64 in flight
 *   json-one   memtun: likewise, one call at a time
 *   hold       none: opens the files, says "ready" and holds them until standard input ends
 *
 *   --path FILE      the device, or --kernel: the kernel's /dev/net/tun, or --pair: a socket pair
 *   --control SOCKET memtun's; its tunnels are attached to and filled through it
 *   --inject SOCKET  where a C peer takes datagrams for its blocked readers
 *   --size BYTES, --calls N, --files N, --blocked N, --clients N, --cpu N, --pair-cpu N: see client.h
 *
 * Prints nanoseconds per call, those of the fastest batch, the number of calls, and (not of attach and json) the nanoseconds
 * that 99 of 100 calls take at most. What is not the row's own call (filling queues, warming up) is outside the timed parts.
 * The clock is read once for each batch of calls. The calls of which 99 of 100 count are further ones, a third as many,
 * because there the clock is read for each call.
 */
#define _GNU_SOURCE
#include "client.h"

#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <linux/sockios.h>
#include <time.h>
#include <unistd.h>

/* Calls before each timed batch. */
#define WARM_UP 8
/* No more batches after so long: calls that take milliseconds, on a busy emulated machine, need not be so many. */
#define BUDGET_NS 1000000000
/* Timed calls of a batch: with the warm-up less than the 500 datagrams that a tun queues. */
#define BATCH 400
/* One call in so many is also timed by itself. */
#define SINGLE 3

struct setting setting = {
    .size = 1400, .calls = 1000, .files = 1, .clients = 1, .cpu = -1, .pair_cpu = -1};

static struct file *files;
static char received[MAX_DATAGRAM + 1];

/* What was timed so far. */
static struct {
    int64_t ns;
    int calls;
    double fastest; /* nanoseconds a call, of the fastest batch */
} timed;

/* What was timed call by call: nanoseconds of each. */
static struct {
    int64_t *ns;
    int count;
} singles;

int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void count_batch(int64_t start, int calls) {
    int64_t ns = now_ns() - start;
    timed.ns += ns;
    timed.calls += calls;
    if (timed.fastest == 0 || (double)ns / calls < timed.fastest)
        timed.fastest = (double)ns / calls;
}

void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (cpu >= 0 && sched_setaffinity(0, sizeof set, &set))
        err(1, "pinning to CPU %d", cpu);
}

/* ---- the calls */

static void write_one(const struct file *file) {
    if (setting.pair)
        return pair_write();
    ssize_t length = write(file->fd, datagram, setting.size);
    if (length != (ssize_t)setting.size)
        err(1, "write gave %zd", length);
}

/* With the room that clients of an MTU of 1,500 offer; what is longer gets its own. */
static void read_one(const struct file *file) {
    if (setting.pair)
        return pair_read();
    ssize_t length = read(file->fd, received, setting.size > 2048 ? sizeof received : 2048);
    if (length != (ssize_t)setting.size)
        err(1, "read gave %zd", length);
}

static void cycle_one(const struct file *file) {
    write_one(file);
    struct pollfd wait = {.fd = file->fd, .events = POLLIN};
    if (poll(&wait, 1, 10000) != 1)
        errx(1, "nothing to read after 10 s");
    read_one(file);
}

/* ---- rows of calls, in turn over the files */

static void run_batch(void (*call)(const struct file *), int count) {
    for (int i = 0; i < WARM_UP; i++)
        call(&files[i % setting.files]);
    int64_t start = now_ns();
    for (int i = 0; i < count; i++)
        call(&files[(WARM_UP + i) % setting.files]);
    count_batch(start, count);
}

/* Times each call; the clock's own time is in it. */
static void run_singly(void (*call)(const struct file *), int count) {
    for (int i = 0; i < WARM_UP; i++)
        call(&files[i % setting.files]);
    int64_t before = now_ns();
    for (int i = 0; i < count; i++) {
        call(&files[(WARM_UP + i) % setting.files]);
        int64_t after = now_ns();
        singles.ns[singles.count++] = after - before;
        before = after;
    }
}

static void make_room_for_singles(int count) {
    singles.ns = calloc((size_t)count + 1, sizeof *singles.ns);
    if (!singles.ns)
        err(1, "timing %d calls", count);
}

/* Calls of the next batch. */
static int next_batch(int largest) {
    int left = setting.calls - timed.calls;
    return timed.ns > BUDGET_NS ? 0 : left < largest ? left : largest;
}

/* Makes what so many calls and those before them read. */
static void prepare(int count, bool reads) {
    int all = count + WARM_UP;
    for (int i = 0; i < setting.files && !setting.pair; i++) {
        drain(&files[i]);
        if (reads)
            fill(&files[i], all / setting.files + (i < all % setting.files));
    }
}

/* Runs calls in batches, each after making what it reads. */
static void run_calls(void (*call)(const struct file *), bool reads) {
    int largest = setting.files > BATCH ? setting.files : BATCH, count;
    while ((count = next_batch(largest)) > 0) {
        prepare(count, reads);
        run_batch(call, count);
    }
    int left = timed.calls / SINGLE;
    make_room_for_singles(left);
    for (; left > 0; left -= count) {
        count = left < largest ? left : largest;
        prepare(count, reads);
        run_singly(call, count);
    }
}

/* ---- many clients at once */

static pthread_barrier_t barrier;

static void *write_all(void *argument) {
    const struct file *file = argument;
    int count = setting.calls / setting.clients, single = count / SINGLE;
    for (int i = 0; i < WARM_UP; i++)
        write_one(file);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < count; i++)
        write_one(file);
    pthread_barrier_wait(&barrier);
    /* The clock has been read. */
    pthread_barrier_wait(&barrier);
    int64_t *ns = singles.ns + (file - files) * single, before = now_ns();
    for (int i = 0; i < single; i++) {
        write_one(file);
        int64_t after = now_ns();
        ns[i] = after - before;
        before = after;
    }
    return NULL;
}

static void run_clients(void) {
    pthread_t threads[setting.clients];
    pthread_barrier_init(&barrier, NULL, (unsigned)setting.clients + 1);
    int each = setting.calls / setting.clients;
    make_room_for_singles(each / SINGLE * setting.clients);
    for (int i = 0; i < setting.clients; i++) {
        errno = pthread_create(&threads[i], NULL, write_all, &files[i]);
        if (errno)
            err(1, "starting a thread");
    }
    pthread_barrier_wait(&barrier);
    int64_t start = now_ns();
    pthread_barrier_wait(&barrier);
    count_batch(start, each * setting.clients);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < setting.clients; i++)
        pthread_join(threads[i], NULL);
    singles.count = each / SINGLE * setting.clients;
}

/* ---- round trips */

static void *echo(void *argument) {
    const struct file *file = argument;
    for (;;) {
        read_one(file);
        write_one(file);
    }
    return NULL;
}

static void receive_one(int fd) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, 10000) != 1)
        errx(1, "no datagram came back within 10 s");
    ssize_t length = recv(fd, received, sizeof received, MSG_TRUNC);
    if (length != (ssize_t)setting.size)
        err(1, "recv gave %zd", length);
}

static void send_one(int fd) {
    if (send(fd, datagram, setting.size, MSG_NOSIGNAL) != (ssize_t)setting.size)
        err(1, "send");
}

static int far_end;

static void ping_one(const struct file *file) {
    (void)file;
    send_one(far_end);
    receive_one(far_end);
}

static void run_pings(void) {
    make_waiting(&files[0]);
    far_end = open_far_end(&files[0]);
    pthread_t reader;
    errno = pthread_create(&reader, NULL, echo, &files[0]);
    if (errno)
        err(1, "starting a thread");
    run_calls(ping_one, false);
}

/* ---- throughput into a queue that nobody reads meanwhile */

static void run_attach(void) {
    int far = control_attach(files[0].name);
    int count;
    while ((count = next_batch(BATCH)) > 0) {
        int64_t start = now_ns();
        for (int i = 0; i < count; i++)
            send_one(far);
        int unread = 1;
        while (!ioctl(far, SIOCOUTQ, &unread) && unread > 0)
            sched_yield();
        count_batch(start, count);
        /* That all arrived: each read finds one, or poll gives up. */
        struct pollfd wait = {.fd = files[0].fd, .events = POLLIN};
        for (int i = 0; i < count; i++) {
            if (poll(&wait, 1, 2000) != 1)
                errx(1, "%d datagrams of %d were lost", count - i, count);
            read_one(&files[0]);
        }
    }
}

static void run_json(int window) {
    int count;
    while ((count = next_batch(BATCH)) > 0) {
        int64_t start = now_ns();
        control_inject(files[0].name, count, window);
        count_batch(start, count);
        for (int i = 0; i < count; i++)
            read_one(&files[0]);
    }
}

static int by_size(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static void print_times(void) {
    if (!timed.calls)
        return;
    printf("%.1f %.1f %d", (double)timed.ns / timed.calls, timed.fastest, timed.calls);
    if (singles.count) {
        qsort(singles.ns, (size_t)singles.count, sizeof *singles.ns, by_size);
        printf(" %" PRId64, singles.ns[(singles.count * 99 + 99) / 100 - 1]);
    }
    puts("");
    fflush(stdout);
}

static void hold(void) {
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF)
        ;
}

/* ---- options */

static const char *parse(int argc, char **argv) {
    static const char *const names[] = {"path", "control", "inject", "size", "calls", "files", "blocked",
                                        "clients", "cpu", "pair-cpu", "kernel", "pair"};
    static struct option options[sizeof names / sizeof *names + 1];
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        options[i] = (struct option){names[i], i < 10 ? required_argument : no_argument, NULL, i + 1};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 1: setting.path = optarg; break;
        case 2: setting.control = optarg; break;
        case 3: setting.inject = optarg; break;
        case 4: setting.size = (size_t)atol(optarg); break;
        case 5: setting.calls = atoi(optarg); break;
        case 6: setting.files = atoi(optarg); break;
        case 7: setting.blocked = atoi(optarg); break;
        case 8: setting.clients = atoi(optarg); break;
        case 9: setting.cpu = atoi(optarg); break;
        case 10: setting.pair_cpu = atoi(optarg); break;
        case 11: setting.kernel = true; break;
        case 12: setting.pair = true; break;
        default: exit(2);
        }
    }
    if (optind + 1 != argc || setting.size > MAX_DATAGRAM || setting.calls < 1 || setting.files < 1 ||
        setting.clients < 1 || !setting.path + !setting.kernel + !setting.pair != 2)
        errx(2, "usage: client ROW (--path FILE | --kernel | --pair) [OPTION...]; the source's head has them");
    return argv[optind];
}

static void raise_file_limit(void) {
    struct rlimit limit = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv) {
    const char *row = parse(argc, argv);
    /* A peer that answers nothing must not hold up the benchmark for ever. */
    alarm(120);
    raise_file_limit();
    if (setting.pair)
        pair_start();
    pin(setting.cpu);
    if (setting.control)
        control_connect(setting.control);
    build_datagram();
    if (setting.clients > setting.files)
        setting.files = setting.clients;
    files = calloc((size_t)setting.files, sizeof *files);
    for (int i = 0; i < setting.files && !setting.pair; i++) {
        files[i] = open_file();
        /* Also tells a C peer how long its datagrams are. */
        write_one(&files[i]);
    }
    start_blocked_readers(setting.blocked);

    if (setting.clients > 1 && !strcmp(row, "write"))
        run_clients();
    else if (!strcmp(row, "write"))
        run_calls(write_one, false);
    else if (!strcmp(row, "read"))
        run_calls(read_one, true);
    else if (!strcmp(row, "cycle"))
        run_calls(cycle_one, !setting.kernel);
    else if (!strcmp(row, "ping"))
        run_pings();
    else if (!strcmp(row, "attach"))
        run_attach();
    else if (!strcmp(row, "json"))
        run_json(64);
    else if (!strcmp(row, "json-one"))
        run_json(1);
    else if (!strcmp(row, "hold"))
        hold();
    else
        errx(2, "no row %s", row);
    print_times();
    bool has_far_end = !strcmp(row, "ping") || !strcmp(row, "attach");
    for (int i = 0; i < setting.files && i < 16 && setting.control && !has_far_end; i++)
        control_discard(files[i].name);
    /* Not exit(): threads are blocked in reads, and the kernel ends those as it would for a killed client. */
    _exit(0);
}
