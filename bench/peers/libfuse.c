/* libfuse 3 doing what memtun does, by its low-level API, which is its fastest, in the manner of its example/cuse.c.
 *
 * usage: libfuse (--fuse FILE | --cuse NAME) [--threads] [--inject SOCKET]
 *
 * One thread (as with -s), or with --threads as many as libfuse starts by itself.
 */
#define FUSE_USE_VERSION 312
#include <cuse_lowlevel.h>
#include <err.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parking.h"

static struct file *file_of(const struct fuse_file_info *info) { return (struct file *)(uintptr_t)info->fh; }

/* ---- what both front ends do */

static void cuse_open(fuse_req_t req, struct fuse_file_info *info) {
    struct file *file = calloc(1, sizeof *file);
    if (!file) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    info->fh = (uintptr_t)file;
    info->direct_io = 1;
    info->nonseekable = 1;
    fuse_reply_open(req, info);
}

static void cuse_release(fuse_req_t req, struct fuse_file_info *info) {
    free(file_of(info));
    fuse_reply_err(req, 0);
}

static void cuse_flush(fuse_req_t req, struct fuse_file_info *info) {
    (void)info;
    fuse_reply_err(req, 0);
}

static void answer_read(uint64_t request, const char *data, size_t length) {
    fuse_reply_buf((fuse_req_t)(uintptr_t)request, data, length);
}

static void interrupted(fuse_req_t req, void *data) {
    (void)data;
    if (unpark((uintptr_t)req))
        fuse_reply_err(req, EINTR);
}

static bool is_interrupted(uint64_t request) { return fuse_req_interrupted((fuse_req_t)(uintptr_t)request); }

static void cuse_read(fuse_req_t req, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)offset;
    struct file *file = file_of(info);
    if (!file->parks) {
        fuse_reply_buf(req, stored, file->length < size ? file->length : size);
        return;
    }
    /* Before it is parked: once it is, another thread may answer it, and then it is freed. */
    fuse_req_interrupt_func(req, interrupted, NULL);
    if (!park((uintptr_t)req, size, is_interrupted))
        fuse_reply_err(req, EINTR);
}

static void cuse_write(fuse_req_t req, const char *data, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)offset;
    struct file *file = file_of(info);
    file->length = size;
    if (file->parks)
        forward(data, size);
    fuse_reply_write(req, size);
}

static void cuse_poll(fuse_req_t req, struct fuse_file_info *info, struct fuse_pollhandle *handle) {
    if (handle)
        fuse_pollhandle_destroy(handle);
    unsigned ready = POLLOUT | POLLWRNORM;
    fuse_reply_poll(req, file_of(info)->parks ? ready : ready | POLLIN | POLLRDNORM);
}

static void cuse_ioctl(fuse_req_t req, int command, void *argument, struct fuse_file_info *info, unsigned flags,
                       const void *input, size_t input_size, size_t output_size) {
    (void)argument, (void)flags, (void)input, (void)input_size, (void)output_size;
    if ((unsigned)command != BENCH_PARK) {
        fuse_reply_err(req, ENOTTY);
        return;
    }
    file_of(info)->parks = true;
    fuse_reply_ioctl(req, 0, NULL, 0);
}

static const struct cuse_lowlevel_ops cuse_operations = {
    .open = cuse_open,
    .release = cuse_release,
    .read = cuse_read,
    .write = cuse_write,
    .poll = cuse_poll,
    .ioctl = cuse_ioctl,
};

/* ---- the one-file mount: the same with an inode, which is always the root */

static void fuse_attributes(fuse_req_t req) {
    struct stat attributes = {.st_ino = 1, .st_mode = S_IFREG | 0666, .st_nlink = 1, .st_size = 1LL << 40};
    fuse_reply_attr(req, &attributes, 3600);
}

static void fuse_getattr(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode, (void)info;
    fuse_attributes(req);
}

static void fuse_setattr(fuse_req_t req, fuse_ino_t inode, struct stat *set, int which, struct fuse_file_info *info) {
    (void)inode, (void)set, (void)which, (void)info;
    fuse_attributes(req);
}

static void fuse_open(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    cuse_open(req, info);
}

static void fuse_release(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    cuse_release(req, info);
}

static void fuse_flush(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    cuse_flush(req, info);
}

static void fuse_read(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)inode;
    cuse_read(req, size, offset, info);
}

static void fuse_write(fuse_req_t req, fuse_ino_t inode, const char *data, size_t size, off_t offset,
                       struct fuse_file_info *info) {
    (void)inode;
    cuse_write(req, data, size, offset, info);
}

static void fuse_poll(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *info,
                      struct fuse_pollhandle *handle) {
    (void)inode;
    cuse_poll(req, info, handle);
}

static void fuse_ioctl(fuse_req_t req, fuse_ino_t inode, unsigned command, void *argument,
                       struct fuse_file_info *info, unsigned flags, const void *input, size_t input_size,
                       size_t output_size) {
    (void)inode;
    cuse_ioctl(req, (int)command, argument, info, flags, input, input_size, output_size);
}

static const struct fuse_lowlevel_ops fuse_operations = {
    .getattr = fuse_getattr,
    .setattr = fuse_setattr,
    .open = fuse_open,
    .release = fuse_release,
    .flush = fuse_flush,
    .read = fuse_read,
    .write = fuse_write,
    .poll = fuse_poll,
    .ioctl = fuse_ioctl,
};

/* ---- start and loop */

static struct fuse_session *fuse_start(char *program, const char *path) {
    char *arguments[] = {program, "-oallow_other", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(2, arguments);
    struct fuse_session *session = fuse_session_new(&args, &fuse_operations, sizeof fuse_operations, NULL);
    if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, path))
        errx(1, "mounting over %s failed", path);
    fuse_opt_free_args(&args);
    return session;
}

static struct fuse_session *cuse_start(char *program, const char *name, bool threads) {
    char variable[128];
    snprintf(variable, sizeof variable, "DEVNAME=%s", name);
    const char *info[] = {variable};
    struct cuse_info device = {
        .dev_info_argc = 1, .dev_info_argv = info, .flags = CUSE_UNRESTRICTED_IOCTL};
    char *arguments[] = {program, "-f", threads ? NULL : "-s", NULL};
    int is_multithreaded;
    struct fuse_session *session = cuse_lowlevel_setup(threads ? 2 : 3, arguments, &device, &cuse_operations,
                                                       &is_multithreaded, NULL);
    if (!session)
        errx(1, "registering /dev/%s failed", name);
    return session;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"fuse", required_argument, NULL, 'f'},
                                            {"cuse", required_argument, NULL, 'c'},
                                            {"inject", required_argument, NULL, 'i'},
                                            {"threads", no_argument, NULL, 't'},
                                            {0}};
    const char *mount_point = NULL, *device_name = NULL, *inject = NULL;
    bool threads = false;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'f': mount_point = optarg; break;
        case 'c': device_name = optarg; break;
        case 'i': inject = optarg; break;
        case 't': threads = true; break;
        default: return 2;
        }
    }
    if (!mount_point == !device_name || optind != argc)
        errx(2, "usage: %s (--fuse FILE | --cuse NAME) [--threads] [--inject SOCKET]", argv[0]);
    parking_start(inject, answer_read);
    struct fuse_session *session =
        mount_point ? fuse_start(argv[0], mount_point) : cuse_start(argv[0], device_name, threads);
    int status;
    if (threads) {
        struct fuse_loop_config *config = fuse_loop_cfg_create();
        status = fuse_session_loop_mt(session, config);
        fuse_loop_cfg_destroy(config);
    } else {
        status = fuse_session_loop(session);
    }
    if (mount_point)
        fuse_session_unmount(session);
    return status ? 1 : 0;
}
