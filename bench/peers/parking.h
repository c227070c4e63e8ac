/* What the C peers share: open files, reads that wait for a datagram, and the socket the datagrams come from.
 *
 * A file starts out "always readable": each write is dropped but for its length, and each read is answered at once with
 * that many stored bytes.
 * The ioctl BENCH_PARK makes it a waiting one: its reads are parked until a datagram comes over the inject socket
 * (SOCK_SEQPACKET; one message, one datagram; the read parked last gets it), and what is written goes back over the
 * socket. That is as much as a peer needs for the rows of the benchmark, and less than memtun does for them.
 */
#ifndef PARKING_H
#define PARKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../park.h"

/* Longer than any datagram: what one FUSE request carries by default. */
#define MAX_DATA (128 * 1024)

/* What reads give that do not wait; filled once by parking_start(). */
extern char stored[MAX_DATA];

struct file {
    bool parks;
    size_t length; /* of what was written last: a read that does not wait gives as much */
};

/* A parked read. `request` is the peer's own name of it. */
struct parked {
    struct parked *next;
    uint64_t request;
    size_t room;
};

/* Prepares `stored`, and if `path` is not NULL starts a thread that listens there and answers parked reads by
 * `answer`. */
void parking_start(const char *path, void (*answer)(uint64_t request, const char *data, size_t length));

/* Adds a read, or answers it if a datagram waits. False if `is_void` (which may be NULL) says, asked under the lock,
 * that it is interrupted already. */
bool park(uint64_t request, size_t room, bool (*is_void)(uint64_t request));

/* Removes a parked read. False if it is not parked (any more): somebody else answers it. */
bool unpark(uint64_t request);

/* Passes a written datagram on to whoever is connected to the inject socket. */
void forward(const char *data, size_t length);

#endif
