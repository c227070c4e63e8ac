/* The one program that times every peer, so that all are measured by the same code. See main.c. */
#ifndef CLIENT_H
#define CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longer than any datagram, and as much as one request carries. */
#define MAX_DATAGRAM 65535

/* What is asked on the command line. */
struct setting {
    const char *path;    /* of the device */
    const char *control; /* memtun's control socket, or NULL */
    const char *inject;  /* a C peer's inject socket, or NULL */
    bool kernel;         /* the kernel's own tun, in an own network namespace */
    bool pair;           /* no device: a socket pair */
    size_t size;         /* bytes of a datagram */
    int calls;           /* timed calls or datagrams */
    int files;           /* open files, used in turn */
    int blocked;         /* further files, each with a blocked reader */
    int clients;         /* threads that write, each to its own file */
    int cpu, pair_cpu;   /* where this thread, and the other end of the pair, may run; -1: anywhere */
};

/* An open file of the device. */
struct file {
    int fd;
    char name[16]; /* of its tunnel; empty if the peer has none */
};

extern struct setting setting;

/* ---- main.c */
int64_t now_ns(void);
void pin(int cpu);

/* ---- device.c: files, datagrams for them to read, blocked readers */

/* Opens and attaches a file. */
struct file open_file(void);
/* Makes `file` one whose reads wait for an injected datagram, where that is not so anyway. */
void make_waiting(const struct file *file);
/* Puts `count` datagrams where the next reads find them. */
void fill(const struct file *file, int count);
/* Removes what is queued. */
void drain(const struct file *file);
/* Starts threads, each blocked in a read of a file of its own, and returns when all are. */
void start_blocked_readers(int count);
/* A datagram to write or inject: what the peer takes, and where it is the kernel also answers. */
extern char datagram[MAX_DATAGRAM + 1];
void build_datagram(void);
/* A socket through which datagrams reach the file's blocked reader, and that gets what is written to the file. */
int open_far_end(const struct file *file);

/* ---- control.c: memtun's control socket */
void control_connect(const char *path);
void control_inject(const char *tunnel, int count, int window);
int control_attach(const char *tunnel);
void control_discard(const char *tunnel);

/* ---- pair.c: a socket pair instead of a device */
void pair_start(void);
void pair_write(void);
void pair_read(void);

#endif
