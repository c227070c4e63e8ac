/* The one thing that the client asks of a peer that is no tun device. */
#ifndef PARK_H
#define PARK_H

#include <sys/ioctl.h>

/* From now on, reads of this open file wait for an injected datagram. The argument is not used. */
#define BENCH_PARK _IO('B', 1)

#endif
