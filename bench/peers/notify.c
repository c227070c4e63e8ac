/* The floor of a server by seccomp notifications: the least it can do for a call. One thread; a call is one RECV, one copy
 * from or to the client's memory, one ID_VALID and one SEND.
 *
 * usage: notify --path FILE [--inject SOCKET] [--keep BYTES] PROGRAM [ARGUMENT...]
 *
 * Runs PROGRAM, whose openat() of FILE gets a file descriptor in a high range. There, read(), write() and ioctl() are calls
 * to this server. Everything else that the program does, poll() of such a descriptor included, is the kernel's: an eventfd
 * that is always ready is behind each number. With --keep the datagrams are read into a ring (see keeping.h).
 *
 * It serves one process, which must neither fork nor exec. So one descriptor on that process's memory is enough, and it
 * cannot come to be another process's: a child whose parent has not waited for it keeps its number.
 * Follows seccomp_unotify(2), of Linux 5.9 but for SYNC_WAKE_UP (6.6).
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "keeping.h"
#include "parking.h"

/* Of later headers than Debian 12's; the kernel's numbers. */
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

#if defined __x86_64__
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define OWN_ARCH AUDIT_ARCH_AARCH64
#endif

/* The lowest number of a served file, above all that the client opens otherwise; and how many it may open. */
#define BASE 1024
#define MAX_FILES 16384

/* Measured: up to so many bytes, pread() of /proc/PID/mem takes 0.4 us less than process_vm_readv(). For 64 KiB it takes
 * twice as long, because it copies each page by way of another. */
#define SMALL 4096

static const char *served_path;
static pid_t client;
static int listener, memory = -1, ready;
static struct file files[MAX_FILES];
static int opened;

/* ---- the client's memory */

static int open_memory(void) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/mem", client);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        err(1, "opening %s", path);
    return fd;
}

/* As many bytes as there are, up to `length`; -1 where there are none. */
static ssize_t read_memory(uint64_t address, char *data, size_t length) {
    if (length <= SMALL)
        return pread(memory, data, length, (off_t)address);
    struct iovec here = {data, length}, there = {(void *)(uintptr_t)address, length};
    return process_vm_readv(client, &here, 1, &there, 1, 0);
}

static ssize_t write_memory(uint64_t address, const char *data, size_t length) {
    if (length <= SMALL)
        return pwrite(memory, data, length, (off_t)address);
    struct iovec here = {(void *)data, length}, there = {(void *)(uintptr_t)address, length};
    return process_vm_writev(client, &here, 1, &there, 1, 0);
}

/* ---- answers */

/* Whether the call still waits: not if a signal or the client's end took it away. */
static bool is_valid(uint64_t id) { return !ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id); }

static void reply(uint64_t id, int error, int64_t value, uint32_t flags) {
    struct seccomp_notif_resp response = {.id = id, .error = -error, .val = value, .flags = flags};
    /* A call that ended meanwhile: ENOENT. */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) && errno != ENOENT)
        warn("answering a call");
}

static void reply_data(uint64_t id, uint64_t address, const char *data, size_t length) {
    if (!is_valid(id))
        return;
    ssize_t written = write_memory(address, data, length);
    reply(id, written == (ssize_t)length ? 0 : EFAULT, written == (ssize_t)length ? written : 0, 0);
}

/* ---- calls */

static struct file *file_of(const struct seccomp_notif *call) {
    uint32_t place = (uint32_t)call->data.args[0] - BASE;
    return place < (uint32_t)opened ? &files[place] : NULL;
}

static void handle_open(const struct seccomp_notif *call) {
    /* Not before: the client's memory is another one until it has been executed. */
    if (memory < 0)
        memory = open_memory();
    char path[4096];
    ssize_t length = read_memory(call->data.args[1], path, strlen(served_path) + 1);
    if (!is_valid(call->id))
        return;
    if (length != (ssize_t)strlen(served_path) + 1 || memcmp(path, served_path, (size_t)length))
        return reply(call->id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
    if (opened == MAX_FILES)
        return reply(call->id, EMFILE, 0, 0);
    struct seccomp_notif_addfd add = {.id = call->id,
                                      .flags = SECCOMP_ADDFD_FLAG_SETFD,
                                      .srcfd = (uint32_t)ready,
                                      .newfd = (uint32_t)(BASE + opened),
                                      .newfd_flags = (uint32_t)call->data.args[2] & O_CLOEXEC};
    int fd = ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
    if (fd < 0)
        return reply(call->id, errno, 0, 0);
    opened++;
    reply(call->id, 0, fd, 0);
}

static void handle_write(const struct seccomp_notif *call, struct file *file) {
    static char buffer[MAX_DATA];
    size_t length = call->data.args[2] < MAX_DATA ? call->data.args[2] : MAX_DATA;
    char *kept = keeping_room(length), *data = kept ? kept : buffer;
    ssize_t read = read_memory(call->data.args[1], data, length);
    /* Asked after the memory was read, so that this was the caller's, and before anything comes of it. */
    if (!is_valid(call->id))
        return;
    if (read != (ssize_t)length)
        return reply(call->id, EFAULT, 0, 0);
    if (kept)
        keeping_add(length);
    file->length = length;
    if (file->parks)
        forward(data, length);
    reply(call->id, 0, (int64_t)length, 0);
}

/* What parking.h knows a parked read by. */
struct waiting {
    uint64_t id, address;
};

static void answer_parked(uint64_t request, const char *data, size_t length) {
    struct waiting *waiting = (struct waiting *)(uintptr_t)request;
    reply_data(waiting->id, waiting->address, data, length);
    free(waiting);
}

static void handle_read(const struct seccomp_notif *call, const struct file *file) {
    size_t room = call->data.args[2];
    if (!file->parks)
        return reply_data(call->id, call->data.args[1], stored, file->length < room ? file->length : room);
    struct waiting *waiting = malloc(sizeof *waiting);
    if (!waiting)
        err(1, "malloc");
    *waiting = (struct waiting){call->id, call->data.args[1]};
    park((uintptr_t)waiting, room, NULL);
}

static void handle_ioctl(const struct seccomp_notif *call, struct file *file) {
    if ((uint32_t)call->data.args[1] != BENCH_PARK)
        return reply(call->id, ENOTTY, 0, 0);
    file->parks = true;
    reply(call->id, 0, 0, 0);
}

static void handle(const struct seccomp_notif *call) {
    if (call->data.nr == SYS_openat)
        return handle_open(call);
    struct file *file = file_of(call);
    if (!file)
        return reply(call->id, EBADF, 0, 0);
    switch (call->data.nr) {
    case SYS_write: return handle_write(call, file);
    case SYS_read: return handle_read(call, file);
    case SYS_ioctl: return handle_ioctl(call, file);
    }
}

/* ---- the client */

/* Makes the filter of this process, and returns its listener. */
static int install_filter(void) {
    enum { ALLOW = 9, NOTIFY = 10 };
#define JUMP_TO(to, here) ((to) - (here) - 1)
#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define IF_EQUAL(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)
    struct sock_filter program[] = {
        FIELD(arch),
        IF_EQUAL(OWN_ARCH, 0, JUMP_TO(ALLOW, 1)),
        FIELD(nr),
        IF_EQUAL(SYS_write, JUMP_TO(7, 3), 0),
        IF_EQUAL(SYS_read, JUMP_TO(7, 4), 0),
        IF_EQUAL(SYS_ioctl, JUMP_TO(7, 5), 0),
        IF_EQUAL(SYS_openat, JUMP_TO(NOTIFY, 6), JUMP_TO(ALLOW, 6)),
        /* The low half of the first argument, the descriptor. */
        FIELD(args[0]),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, BASE, JUMP_TO(NOTIFY, 8), 0),
        [ALLOW] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        [NOTIFY] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        err(1, "giving up new privileges");
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (fd < 0)
        err(1, "asking for notifications");
    return fd;
}

union descriptor {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
};

static void send_descriptor(int socket, int fd) {
    struct iovec byte = {"", 1};
    union descriptor extra = {.header = {CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&extra.header), &fd, sizeof fd);
    struct msghdr message = {
        .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &extra, .msg_controllen = sizeof extra};
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != 1)
        err(1, "handing over the listener");
}

static int receive_descriptor(int socket) {
    char byte;
    struct iovec piece = {&byte, 1};
    union descriptor extra;
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &extra, .msg_controllen = sizeof extra};
    int fd = -1;
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && message.msg_controllen)
        memcpy(&fd, CMSG_DATA(&extra.header), sizeof fd);
    return fd;
}

/* Starts the client. What it is notified of waits until its listener is served. */
static void start(char **command) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        err(1, "socketpair");
    client = fork();
    if (client < 0)
        err(1, "fork");
    if (client == 0) {
        signal(SIGCHLD, SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = install_filter();
        send_descriptor(ends[1], fd);
        close(fd);
        execvp(command[0], command);
        err(127, "starting %s", command[0]);
    }
    close(ends[1]);
    listener = receive_descriptor(ends[0]);
    close(ends[0]);
    if (listener < 0)
        errx(1, "the client has no listener");
    /* Hands the CPU from one thread to the other; kernels that cannot are served all the same. */
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
}

/* The client has ended, and so does its server: in older kernels RECV would not. */
static void finish(int signal) {
    (void)signal;
    int status;
    if (waitpid(client, &status, WNOHANG) == client)
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"path", required_argument, NULL, 'p'},
                                            {"inject", required_argument, NULL, 'i'},
                                            {"keep", required_argument, NULL, 'k'},
                                            {0}};
    const char *inject = NULL;
    size_t kept = 0;
    for (int option; (option = getopt_long(argc, argv, "+", options, NULL)) != -1;) {
        switch (option) {
        case 'p': served_path = optarg; break;
        case 'i': inject = optarg; break;
        case 'k': kept = strtoull(optarg, NULL, 10); break;
        default: return 2;
        }
    }
    if (!served_path || strlen(served_path) >= SMALL || optind == argc)
        errx(2, "usage: %s --path FILE [--inject SOCKET] [--keep BYTES] PROGRAM [ARGUMENT...]", argv[0]);
    /* The kernel's structure may be longer than the one that is known here. */
    struct seccomp_notif_sizes sizes;
    if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes))
        err(1, "asking for the size of notifications");
    size_t known = sizeof(struct seccomp_notif), room = sizes.seccomp_notif > known ? sizes.seccomp_notif : known;
    struct seccomp_notif *call = malloc(room);
    ready = eventfd(1, EFD_CLOEXEC);
    if (!call || ready < 0)
        err(1, "starting");
    parking_start(inject, answer_parked);
    signal(SIGCHLD, finish);
    start(argv + optind);
    /* After the fork, or each page would be copied on its first write. */
    keeping_start(kept);
    for (;;) {
        /* It has to be zero (seccomp_notify_recv). */
        memset(call, 0, room);
        if (!ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, call))
            handle(call);
        else if (errno != EINTR && errno != ENOENT)
            err(1, "receiving a call");
    }
}
