/* Steps that wait for a file to be ready. */

static void do_poll(char *rest, struct text *out)
{
    struct pollfd file = { .fd = *slot(&rest) };
    file.events = (short)number(word(&rest), POLLS);
    int result = poll(&file, 1, (int)number(word(&rest), NULL));
    say_result(out, result);
    if (result > 0)
        say(out, " "), say_names(out, (unsigned short)file.revents, POLLS);
}

/* select SLOT SETS TIMEOUT, where SETS is of the letters r, w and x */
static void do_select(char *rest, struct text *out)
{
    int file = *slot(&rest);
    const char *wanted = word(&rest);
    unsigned long timeout = number(word(&rest), NULL);
    struct timeval time = { (long)timeout / 1000, (long)timeout % 1000 * 1000 };
    fd_set sets[3];
    fd_set *given[3];
    for (int i = 0; i < 3; i++) {
        FD_ZERO(&sets[i]);
        FD_SET(file, &sets[i]);
        given[i] = strchr(wanted, "rwx"[i]) ? &sets[i] : NULL;
    }
    int result = select(file + 1, given[0], given[1], given[2], &time);
    say_result(out, result);
    for (int i = 0; result > 0 && i < 3; i++)
        if (given[i] && FD_ISSET(file, given[i]))
            say(out, " %c", "rwx"[i]);
}

/* epoll SLOT create, epoll SLOT add|mod|del FILE EVENTS, epoll SLOT wait TIMEOUT */
static void do_epoll(char *rest, struct text *out)
{
    int *epoll = slot(&rest);
    const char *what = word(&rest);
    if (!strcmp(what, "create")) {
        put(epoll, epoll_create1(EPOLL_CLOEXEC), out);
        return;
    }
    if (!strcmp(what, "wait")) {
        struct epoll_event events[SLOTS];
        int result = epoll_wait(*epoll, events, SLOTS, (int)number(word(&rest), NULL));
        say_result(out, result);
        for (int i = 0; i < result; i++) {
            say(out, " %c=", (char)('a' + events[i].data.u32));
            say_names(out, events[i].events, POLLS);
        }
        return;
    }
    int *file = slot(&rest);
    struct epoll_event event = { .data = { .u32 = (uint32_t)(file - files) } };
    char *events = word(&rest);
    if (*events)
        event.events = (uint32_t)number(events, POLLS);
    int operation = !strcmp(what, "add") ? EPOLL_CTL_ADD : !strcmp(what, "mod") ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    say_result(out, epoll_ctl(*epoll, operation, *file, &event));
}
