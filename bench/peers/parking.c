/* See parking.h. */
#include "parking.h"

#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

char stored[MAX_DATA];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct parked *newest;
static void (*answer_read)(uint64_t request, const char *data, size_t length);
static int connection = -1;
/* A datagram that came before its reader did; a harness sends the next one when it has been answered. */
static char early[MAX_DATA];
static size_t early_length;

static void answer(uint64_t request, size_t room, const char *data, size_t length) {
    answer_read(request, data, length < room ? length : room);
}

bool park(uint64_t request, size_t room, bool (*is_void)(uint64_t request)) {
    struct parked *read = malloc(sizeof *read);
    if (!read)
        err(1, "malloc");
    pthread_mutex_lock(&lock);
    bool is_valid = !is_void || !is_void(request);
    size_t length = is_valid ? early_length : 0;
    if (length) {
        early_length = 0;
    } else if (is_valid) {
        *read = (struct parked){newest, request, room};
        newest = read;
        read = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (length)
        answer(request, room, early, length);
    free(read);
    return is_valid;
}

bool unpark(uint64_t request) {
    pthread_mutex_lock(&lock);
    struct parked **at = &newest;
    while (*at && (*at)->request != request)
        at = &(*at)->next;
    struct parked *found = *at;
    if (found)
        *at = found->next;
    pthread_mutex_unlock(&lock);
    free(found);
    return found != NULL;
}

/* Answers the newest parked read, or keeps the datagram for the next one. */
static void inject(const char *data, size_t length) {
    pthread_mutex_lock(&lock);
    struct parked *read = newest;
    if (read) {
        newest = read->next;
    } else {
        memcpy(early, data, length);
        early_length = length;
    }
    pthread_mutex_unlock(&lock);
    if (read)
        answer(read->request, read->room, data, length);
    free(read);
}

void forward(const char *data, size_t length) {
    int fd = __atomic_load_n(&connection, __ATOMIC_ACQUIRE);
    if (fd >= 0)
        (void)!send(fd, data, length, MSG_NOSIGNAL);
}

static void *inject_all(void *argument) {
    int listener = *(int *)argument;
    static char buffer[MAX_DATA];
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            err(1, "accept");
        __atomic_store_n(&connection, fd, __ATOMIC_RELEASE);
        ssize_t length;
        while ((length = recv(fd, buffer, sizeof buffer, 0)) > 0)
            inject(buffer, (size_t)length);
        __atomic_store_n(&connection, -1, __ATOMIC_RELEASE);
        close(fd);
    }
    return NULL;
}

void parking_start(const char *path, void (*answer)(uint64_t request, const char *data, size_t length)) {
    memset(stored, 0x45, sizeof stored);
    if (!path)
        return;
    answer_read = answer;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        errx(2, "the path of the inject socket is too long: %s", path);
    strcpy(address.sun_path, path);
    static int listener;
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    unlink(path);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
        err(1, "listening at %s", path);
    pthread_t thread;
    errno = pthread_create(&thread, NULL, inject_all, &listener);
    if (errno)
        err(1, "starting the inject thread");
}
