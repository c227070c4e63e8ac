/* The words of a step: slots of files, numbers and names, and how results are said. */

struct value {
    const char *name;
    unsigned long value;
};
#define VALUE(name) { #name, name }
#define END { NULL, 0 }

static const struct value OPEN[] = { { "rdonly", O_RDONLY }, { "wronly", O_WRONLY }, { "rdwr", O_RDWR },
    { "nonblock", O_NONBLOCK }, { "append", O_APPEND }, { "async", O_ASYNC }, { "direct", O_DIRECT },
    { "path", O_PATH }, { "trunc", O_TRUNC }, { "directory", O_DIRECTORY }, { "excl", O_EXCL }, { "creat", O_CREAT }, END };

static const struct value POLLS[] = { { "IN", POLLIN }, { "PRI", POLLPRI }, { "OUT", POLLOUT }, { "ERR", POLLERR },
    { "HUP", POLLHUP }, { "NVAL", POLLNVAL }, { "RDNORM", POLLRDNORM }, { "WRNORM", POLLWRNORM },
    { "RDBAND", POLLRDBAND }, { "WRBAND", POLLWRBAND }, { "RDHUP", POLLRDHUP }, { "ET", EPOLLET },
    { "ONESHOT", EPOLLONESHOT }, END };

static const struct value SIGNALS[] = { VALUE(SIGUSR1), VALUE(SIGUSR2), VALUE(SIGIO), VALUE(SIGWINCH), END };

static const struct value IOCTLS[] = { VALUE(TUNSETNOCSUM), VALUE(TUNSETDEBUG), VALUE(TUNSETIFF), VALUE(TUNSETPERSIST),
    VALUE(TUNSETOWNER), VALUE(TUNSETLINK), VALUE(TUNSETGROUP), VALUE(TUNGETFEATURES), VALUE(TUNSETOFFLOAD),
    VALUE(TUNSETTXFILTER), VALUE(TUNGETIFF), VALUE(TUNGETSNDBUF), VALUE(TUNSETSNDBUF), VALUE(TUNATTACHFILTER),
    VALUE(TUNDETACHFILTER), VALUE(TUNGETVNETHDRSZ), VALUE(TUNSETVNETHDRSZ), VALUE(TUNSETQUEUE), VALUE(TUNSETIFINDEX),
    VALUE(TUNGETFILTER), VALUE(TUNSETVNETLE), VALUE(TUNGETVNETLE), VALUE(TUNSETVNETBE), VALUE(TUNGETVNETBE),
    VALUE(TUNSETSTEERINGEBPF), VALUE(TUNSETFILTEREBPF), VALUE(TUNSETCARRIER), VALUE(TUNGETDEVNETNS), VALUE(SIOCGSKNS),
    VALUE(SIOCGIFHWADDR), VALUE(SIOCSIFHWADDR), VALUE(FIONBIO), VALUE(FIOASYNC), VALUE(FIONREAD), VALUE(FIOCLEX),
    VALUE(FIONCLEX), VALUE(TCGETS), END };

/* A number, or names joined with '|'. */
static unsigned long number(char *spec, const struct value *names)
{
    unsigned long sum = 0;
    for (char *next; spec; spec = next) {
        next = cut(spec, "|");
        const struct value *v = names;
        while (v && v->name && strcmp(v->name, spec))
            v++;
        char *end = spec;
        sum |= v && v->name ? v->value : strtoul(spec, &end, 0);
        if (!(v && v->name) && (end == spec || *end)) {
            fprintf(stderr, "no number: %s\n", spec);
            abort();
        }
    }
    return sum;
}

static void say_names(struct text *out, unsigned long bits, const struct value *names)
{
    const char *between = "";
    for (; names->name; names++)
        if (bits & names->value) {
            say(out, "%s%s", between, names->name);
            between = "|";
            bits &= ~names->value;
        }
    if (bits || !*between)
        say(out, "%s%#lx", between, bits);
}

static void say_result(struct text *out, long result)
{
    if (result == -1)
        say(out, "-1 %s", strerrorname_np(errno));
    else
        say(out, "%ld", result);
}

static void say_done(struct text *out, long result)
{
    if (result == -1)
        say_result(out, -1);
    else
        say(out, "ok");
}

static int *slot(char **rest)
{
    const char *name = word(rest);
    if (*name < 'a' || *name > 'z' || name[1]) {
        fprintf(stderr, "no slot: %s\n", name);
        abort();
    }
    return &files[*name - 'a'];
}

/* Like close(2), and waits until a FUSE server, too, has heard of it: of an open it hears later than of a close before. */
static int close_heard(int file)
{
    int result = close(file), error = errno;
    struct stat status;
    if (stat(device, &status) == 0 && S_ISREG(status.st_mode)) {
        int later = open(device, O_RDONLY | O_CLOEXEC);
        if (later >= 0)
            close(later);
    }
    errno = error;
    return result;
}

static void put(int *slot, int file, struct text *out)
{
    int error = errno;
    if (file >= 0 && *slot >= 0)
        close_heard(*slot);
    if (file >= 0)
        *slot = file;
    errno = error;
    say_done(out, file);
}
