/* What the bare loops share: a copy of the last bytes that were written, as the floor of a server that keeps what clients
 * write. The copy is a ring in memory that was touched before.
 */
#ifndef KEEPING_H
#define KEEPING_H

#include <stddef.h>

/* Makes the ring. With no room, nothing is kept. */
void keeping_start(size_t room);

/* Where the next `length` bytes go; NULL if they are not kept. */
char *keeping_room(size_t length);

/* `length` bytes are there now. */
void keeping_add(size_t length);

#endif
