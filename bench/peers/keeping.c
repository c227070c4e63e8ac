/* See keeping.h. */
#include "keeping.h"

#include <err.h>
#include <stdlib.h>
#include <string.h>

static struct {
    char *bytes;
    size_t room, at;
} kept;

void keeping_start(size_t room) {
    if (!room)
        return;
    kept.bytes = malloc(room);
    if (!kept.bytes)
        err(1, "keeping %zu bytes", room);
    memset(kept.bytes, 1, room);
    kept.room = room;
}

char *keeping_room(size_t length) {
    if (length > kept.room)
        return NULL;
    if (length > kept.room - kept.at)
        kept.at = 0;
    return kept.bytes + kept.at;
}

void keeping_add(size_t length) { kept.at += length; }
