/* The floor: the least a server can do for a call. One thread, one read of the channel and one writev a message.
 *
 * usage: bare (--fuse FILE | --cuse NAME) [--inject SOCKET] [--spin MICROSECONDS] [--keep BYTES]
 *
 * Serves a single regular file mounted over FILE, or the character device /dev/NAME. With --spin it looks for the
 * next request without sleeping for so long after each one, as a yardstick for servers that do that. With --keep it keeps
 * a copy of the last BYTES that were written, in memory that it has touched before: the floor of a server that keeps
 * what clients write.
 * Follows include/uapi/linux/fuse.h, protocol 7.31 (of Linux 5.10: no later feature is used but open flags, which
 * older kernels ignore).
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "keeping.h"
#include "parking.h"

/* Of later headers than Debian 12's; the kernel's numbers. */
#define OPEN_STREAM (1 << 4)
#define OPEN_NOFLUSH (1 << 5)
#define OPEN_PARALLEL_DIRECT_WRITES (1 << 6)

static int channel;
static const char *mount_point, *device_name;

static void reply(uint64_t unique, int error, const void *head, size_t head_length, const void *body,
                  size_t body_length) {
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + head_length + body_length), .error = -error, .unique = unique};
    struct iovec pieces[3] = {
        {&header, sizeof header}, {(void *)head, head_length}, {(void *)body, body_length}};
    /* An interrupted request is gone: ENOENT. */
    if (writev(channel, pieces, body_length ? 3 : head_length ? 2 : 1) < 0 && errno != ENOENT)
        warn("answering a request");
}

static void answer_read(uint64_t request, const char *data, size_t length) {
    reply(request, 0, NULL, 0, data, length);
}

static void reply_init(const struct fuse_in_header *in, const struct fuse_init_in *init) {
    struct fuse_init_out out = {.major = 7,
                                .minor = 31,
                                .max_readahead = init->max_readahead,
                                .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES,
                                .max_write = MAX_DATA};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
}

static void reply_cuse_init(const struct fuse_in_header *in) {
    struct cuse_init_out out = {.major = 7,
                                .minor = 31,
                                .flags = CUSE_UNRESTRICTED_IOCTL,
                                .max_read = MAX_DATA,
                                .max_write = MAX_DATA};
    char info[256];
    int length = snprintf(info, sizeof info, "DEVNAME=%s", device_name) + 1;
    reply(in->unique, 0, &out, sizeof out, info, (size_t)length);
}

static void reply_attributes(const struct fuse_in_header *in) {
    /* A large size, else writes are past the end and take the inode lock alone. */
    struct fuse_attr_out out = {.attr_valid = 3600,
                                .attr = {.ino = 1, .size = 1ULL << 40, .mode = S_IFREG | 0666, .nlink = 1}};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
}

static void reply_open(const struct fuse_in_header *in) {
    struct file *file = calloc(1, sizeof *file);
    struct fuse_open_out out = {
        .fh = (uintptr_t)file,
        .open_flags = FOPEN_DIRECT_IO | OPEN_STREAM | OPEN_NOFLUSH | OPEN_PARALLEL_DIRECT_WRITES};
    reply(in->unique, file ? 0 : ENOMEM, &out, file ? sizeof out : 0, NULL, 0);
}

static void keep(const char *data, size_t length) {
    char *room = keeping_room(length);
    if (!room)
        return;
    memcpy(room, data, length);
    keeping_add(length);
}

static void reply_write(const struct fuse_in_header *in, const struct fuse_write_in *write) {
    struct file *file = (struct file *)(uintptr_t)write->fh;
    keep((const char *)(write + 1), write->size);
    file->length = write->size;
    if (file->parks)
        forward((const char *)(write + 1), write->size);
    struct fuse_write_out out = {.size = write->size};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
}

static void reply_read(const struct fuse_in_header *in, const struct fuse_read_in *read) {
    struct file *file = (struct file *)(uintptr_t)read->fh;
    if (file->parks)
        park(in->unique, read->size, NULL);
    else
        reply(in->unique, 0, NULL, 0, stored, file->length < read->size ? file->length : read->size);
}

static void reply_poll(const struct fuse_in_header *in, const struct fuse_poll_in *poll) {
    struct file *file = (struct file *)(uintptr_t)poll->fh;
    struct fuse_poll_out out = {.revents = file->parks ? POLLOUT | POLLWRNORM
                                                       : POLLOUT | POLLWRNORM | POLLIN | POLLRDNORM};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
}

static void reply_ioctl(const struct fuse_in_header *in, const struct fuse_ioctl_in *ioctl) {
    struct file *file = (struct file *)(uintptr_t)ioctl->fh;
    if (ioctl->cmd == BENCH_PARK)
        file->parks = true;
    else
        return reply(in->unique, ENOTTY, NULL, 0, NULL, 0);
    struct fuse_ioctl_out out = {0};
    reply(in->unique, 0, &out, sizeof out, NULL, 0);
}

static void handle(const struct fuse_in_header *in) {
    const void *body = in + 1;
    switch (in->opcode) {
    case FUSE_INIT: return reply_init(in, body);
    case CUSE_INIT: return reply_cuse_init(in);
    case FUSE_GETATTR:
    case FUSE_SETATTR: return reply_attributes(in);
    case FUSE_OPEN: return reply_open(in);
    case FUSE_WRITE: return reply_write(in, body);
    case FUSE_READ: return reply_read(in, body);
    case FUSE_POLL: return reply_poll(in, body);
    case FUSE_IOCTL: return reply_ioctl(in, body);
    case FUSE_FLUSH: return reply(in->unique, 0, NULL, 0, NULL, 0);
    case FUSE_RELEASE:
        free((struct file *)(uintptr_t)((const struct fuse_release_in *)body)->fh);
        return reply(in->unique, 0, NULL, 0, NULL, 0);
    case FUSE_INTERRUPT: {
        uint64_t target = ((const struct fuse_interrupt_in *)body)->unique;
        /* What is not parked is being answered, or has been. */
        if (unpark(target))
            reply(target, EINTR, NULL, 0, NULL, 0);
        return;
    }
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: return;
    default: return reply(in->unique, ENOSYS, NULL, 0, NULL, 0);
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Like read(), but looks again and again for `spin_ns` before it sleeps. */
static ssize_t receive(void *buffer, size_t room, uint64_t spin_ns) {
    uint64_t until = spin_ns ? now_ns() + spin_ns : 0;
    for (;;) {
        ssize_t length = read(channel, buffer, room);
        if (length >= 0 || errno != EAGAIN)
            return length;
        if (now_ns() >= until) {
            struct pollfd wait = {.fd = channel, .events = POLLIN};
            poll(&wait, 1, -1);
            until = now_ns() + spin_ns;
        }
    }
}

static void stop(int signal) {
    (void)signal;
    if (mount_point)
        umount2(mount_point, MNT_DETACH);
    _exit(0);
}

static void open_channel(bool spins) {
    const char *path = mount_point ? "/dev/fuse" : "/dev/cuse";
    channel = open(path, O_RDWR | O_CLOEXEC | (spins ? O_NONBLOCK : 0));
    if (channel < 0)
        err(1, "opening %s", path);
    if (mount_point) {
        char options[128];
        snprintf(options, sizeof options, "fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other,max_read=%d",
                 channel, S_IFREG | 0666, MAX_DATA);
        if (mount("bench", mount_point, "fuse.bench", MS_NOSUID | MS_NODEV, options))
            err(1, "mounting over %s", mount_point);
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"fuse", required_argument, NULL, 'f'},
                                            {"cuse", required_argument, NULL, 'c'},
                                            {"inject", required_argument, NULL, 'i'},
                                            {"spin", required_argument, NULL, 's'},
                                            {"keep", required_argument, NULL, 'k'},
                                            {0}};
    const char *inject = NULL;
    uint64_t spin_ns = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'f': mount_point = optarg; break;
        case 'c': device_name = optarg; break;
        case 'i': inject = optarg; break;
        case 's': spin_ns = strtoull(optarg, NULL, 10) * 1000; break;
        case 'k': keeping_start(strtoull(optarg, NULL, 10)); break;
        default: return 2;
        }
    }
    if (!mount_point == !device_name || optind != argc)
        errx(2, "usage: %s (--fuse FILE | --cuse NAME) [--inject SOCKET] [--spin MICROSECONDS] [--keep BYTES]",
             argv[0]);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    parking_start(inject, answer_read);
    open_channel(spin_ns > 0);
    static char buffer[MAX_DATA + 4096];
    for (;;) {
        ssize_t length = receive(buffer, sizeof buffer, spin_ns);
        if (length >= (ssize_t)sizeof(struct fuse_in_header))
            handle((const struct fuse_in_header *)buffer);
        else if (length < 0 && errno == ENODEV)
            return 0;
        else if (length < 0 && errno != EINTR && errno != ENOENT)
            err(1, "reading the channel");
    }
}
