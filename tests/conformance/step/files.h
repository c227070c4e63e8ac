/* Steps that open, close and pass files, and those that ask what a device does not serve. */

static void do_open(char *rest, struct text *out)
{
    int *to = slot(&rest);
    put(to, open(device, (int)number(word(&rest), OPEN) | O_CLOEXEC, 0600), out);
}

static void do_close(char *rest, struct text *out)
{
    int *file = slot(&rest);
    say_done(out, close_heard(*file));
    *file = -1;
}

static void do_dup(char *rest, struct text *out)
{
    int from = *slot(&rest);
    put(slot(&rest), dup(from), out);
}

/* Passes a file through a socket. */
static void do_pass(char *rest, struct text *out)
{
    int from = *slot(&rest), *to = slot(&rest), pair[2];
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { { 0 } };
    char byte = 0;
    struct iovec piece = { &byte, 1 };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
        say_result(out, -1);
        return;
    }
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof from);
    memcpy(CMSG_DATA(header), &from, sizeof from);
    int received = -1;
    if (sendmsg(pair[0], &message, 0) == 1 && recvmsg(pair[1], &message, 0) == 1)
        memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof received);
    close(pair[0]);
    close(pair[1]);
    put(to, received, out);
}

static void do_fcntl(char *rest, struct text *out)
{
    int file = *slot(&rest);
    const char *what = word(&rest);
    if (!strcmp(what, "setfl")) {
        say_result(out, fcntl(file, F_SETFL, number(word(&rest), OPEN)));
    } else if (!strcmp(what, "getfl")) {
        int flags = fcntl(file, F_GETFL);
        if (flags == -1)
            say_result(out, -1);
        else
            say(out, "%#o", flags & (O_ACCMODE | O_NONBLOCK | O_ASYNC | O_APPEND | O_DIRECT));
    } else if (!strcmp(what, "setsig")) {
        say_result(out, fcntl(file, F_SETSIG, number(word(&rest), SIGNALS)));
    } else if (!strcmp(what, "setown")) {
        say_result(out, fcntl(file, F_SETOWN, getpid()));
    } else if (!strcmp(what, "getown")) {
        int owner = fcntl(file, F_GETOWN);
        say(out, "%s", owner == 0 ? "nobody" : owner == getpid() ? "this process" : "another");
    } else {
        say(out, "? fcntl");
    }
}

static void do_lseek(char *rest, struct text *out)
{
    int file = *slot(&rest);
    long offset = (long)number(word(&rest), NULL);
    say_result(out, lseek(file, offset, (int)number(word(&rest), NULL)));
}

static void do_fstat(char *rest, struct text *out)
{
    struct stat s;
    if (fstat(*slot(&rest), &s)) {
        say_result(out, -1);
        return;
    }
    say(out, "%s rdev=%u:%u blksize=%ld size=%lld", S_ISCHR(s.st_mode) ? "S_IFCHR" : S_ISREG(s.st_mode) ? "S_IFREG" : "?",
        major(s.st_rdev), minor(s.st_rdev), (long)s.st_blksize, (long long)s.st_size);
}

static void do_fdinfo(char *rest, struct text *out)
{
    char line[256];
    snprintf(line, sizeof line, "/proc/self/fdinfo/%d", *slot(&rest));
    FILE *info = fopen(line, "re");
    say(out, "fdinfo");
    while (info && fgets(line, sizeof line, info))
        if (!strncmp(line, "iff:", 4))
            say(out, " iff=%.*s", (int)strcspn(line + 5, "\n"), line + 5);
    if (info)
        fclose(info);
}

/* Calls that a device does not serve. */
static void do_other(char *rest, struct text *out)
{
    int file = *slot(&rest);
    const char *call = word(&rest);
    char byte = 0;
    if (!strcmp(call, "mmap")) {
        void *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
        say_done(out, map == MAP_FAILED ? -1 : 0);
        if (map != MAP_FAILED)
            munmap(map, 4096);
    } else if (!strcmp(call, "isatty")) {
        int is = isatty(file);
        say_result(out, is ? is : -1);
    } else if (!strcmp(call, "fsync")) {
        say_result(out, fsync(file));
    } else if (!strcmp(call, "ftruncate")) {
        say_result(out, ftruncate(file, 0));
    } else if (!strcmp(call, "fallocate")) {
        say_result(out, fallocate(file, 0, 0, 1));
    } else if (!strcmp(call, "send")) {
        say_result(out, send(file, &byte, 1, 0));
    } else if (!strcmp(call, "recv")) {
        say_result(out, recv(file, &byte, 1, 0));
    } else if (!strcmp(call, "flock")) {
        say_result(out, flock(file, LOCK_EX | LOCK_NB));
    } else if (!strcmp(call, "splice") || !strcmp(call, "splice-to") || !strcmp(call, "sendfile")) {
        int ends[2];
        long result = pipe2(ends, O_NONBLOCK);
        if (result == 0 && !strcmp(call, "splice-to"))
            result = write(ends[1], &byte, 1) == 1 ? splice(ends[0], NULL, file, NULL, 1, SPLICE_F_NONBLOCK) : -1;
        else if (result == 0 && !strcmp(call, "splice"))
            result = splice(file, NULL, ends[1], NULL, 1, SPLICE_F_NONBLOCK);
        else if (result == 0)
            result = sendfile(ends[1], file, NULL, 1);
        say_result(out, result);
        close(ends[0]);
        close(ends[1]);
    } else {
        say(out, "? other");
    }
}

static int crowd[512];
static int crowd_count;

/* crowd NAME FLAGS COUNT: attaches so many files, which stay until a reset; says how many could be */
static void do_crowd(char *rest, struct text *out)
{
    struct ifreq request = { 0 };
    parse_name(word(&rest), request.ifr_name);
    request.ifr_flags = (short)number(word(&rest), NULL);
    int wanted = (int)number(word(&rest), NULL), count = 0;
    long result = 0;
    while (count < wanted && result == 0 && crowd_count < (int)(sizeof crowd / sizeof *crowd)) {
        int file = open(device, O_RDWR | O_CLOEXEC);
        result = file < 0 ? -1 : ioctl(file, TUNSETIFF, &request);
        if (file >= 0)
            crowd[crowd_count++] = file;
        count += result == 0;
    }
    say(out, "%d ", count);
    say_done(out, result);
}
