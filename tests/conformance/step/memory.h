/* Memory that a system call is given, and what the kernel did to it.
 *
 * It stands between bytes of a known value and pages that cannot be touched, so that whatever is written beside it shows. */

enum { FILL = 0xa5, MARGIN = 64, LINE = 8192 };

enum place { PLAIN, EDGE, READ_ONLY, NOWHERE, UNMAPPED, KERNEL };

struct memory {
    enum place place;
    unsigned char *map; /* all of the mapping, guard pages included */
    size_t mapped, page;
    unsigned char *at; /* what the call is given */
    size_t size;       /* how much of it the call may touch by its contract */
    size_t valid;      /* how much of that is mapped */
    unsigned char *before;
};

/* Answers are built by appending. */
struct text {
    char bytes[LINE];
    size_t length;
};

__attribute__((format(printf, 2, 3))) static void say(struct text *out, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(out->bytes + out->length, LINE - out->length, format, arguments);
    va_end(arguments);
    out->length += (size_t)more;
    if (out->length >= LINE) {
        fputs("an answer is too long\n", stderr);
        abort();
    }
}

/* Bytes in hex; of many the first ones, their number and a hash (FNV-1a). */
static void say_bytes(struct text *out, const unsigned char *bytes, size_t size)
{
    size_t shown = size <= 128 ? size : 48;
    for (size_t i = 0; i < shown; i++)
        say(out, "%02x", bytes[i]);
    if (shown == size)
        return;
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    say(out, "..%zu:%08x", size, hash);
}

/* The next word of a line, or the empty string. */
static char *word(char **rest)
{
    char *start = *rest + strspn(*rest, " ");
    char *end = start + strcspn(start, " ");
    *rest = *end ? end + 1 : end;
    *end = 0;
    return start;
}

/* Cuts a string at the first of these characters; the rest of it, or null. */
static char *cut(char *string, const char *at)
{
    char *end = strpbrk(string, at);
    if (end)
        *end++ = 0;
    return end;
}

static struct memory memory(enum place place, size_t size, size_t valid)
{
    struct memory m = { .place = place, .size = size, .valid = valid };
    if (place == NOWHERE)
        return m;
    if (place == KERNEL) {
        m.at = (unsigned char *)~(uintptr_t)0xffffff;
        return m;
    }
    m.page = (size_t)sysconf(_SC_PAGESIZE);
    size_t inner = (size + 2 * MARGIN + m.page - 1) / m.page * m.page;
    m.mapped = inner + 2 * m.page;
    m.map = mmap(NULL, m.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m.map == MAP_FAILED || mprotect(m.map + m.page, inner, PROT_READ | PROT_WRITE)) {
        perror("memory");
        abort();
    }
    memset(m.map + m.page, FILL, inner);
    m.at = place == EDGE ? m.map + m.page + inner - valid : place == UNMAPPED ? m.map : m.map + m.page + MARGIN;
    return m;
}

/* Puts in what the call is to find there, as far as that is mapped. */
static void fill(struct memory *m, const void *bytes)
{
    if (m->valid == 0)
        return;
    if (bytes)
        memcpy(m->at, bytes, m->valid);
    m->before = malloc(m->valid);
    memcpy(m->before, m->at, m->valid);
    if (m->place == READ_ONLY)
        mprotect(m->map + m->page, m->mapped - 2 * m->page, PROT_READ);
}

/* The number of bytes up to the last one that the call changed. */
static size_t changed(const struct memory *m)
{
    size_t end = m->valid;
    while (end > 0 && m->at[end - 1] == m->before[end - 1])
        end--;
    return end;
}

/* Says whether anything beside the memory was written, and gives it back. */
static void release(struct memory *m, struct text *out)
{
    if (!m->map)
        return;
    unsigned char *end = m->map + m->mapped - m->page;
    for (unsigned char *p = m->map + m->page; p < end; p++)
        if ((p < m->at || p >= m->at + m->valid) && *p != FILL) {
            say(out, " WRITTEN AT %+td", p - m->at);
            break;
        }
    free(m->before);
    munmap(m->map, m->mapped);
}

/* PLACE:REST, where a place may be left out; what is in memory comes after it. */
static enum place place(char **spec, size_t *valid)
{
    static const struct {
        const char *name;
        enum place place;
    } places[] = { { "null", NOWHERE }, { "bad", UNMAPPED }, { "kernel", KERNEL }, { "ro", READ_ONLY }, { "edge", EDGE } };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        size_t length = strlen(places[i].name);
        if (strncmp(*spec, places[i].name, length) || ((*spec)[length] != ':' && (*spec)[length]))
            continue;
        *spec += length + ((*spec)[length] == ':');
        if (places[i].place == EDGE) {
            *valid = strtoul(*spec, spec, 0);
            *spec += **spec == ':';
        }
        return places[i].place;
    }
    return PLAIN;
}

/* Bytes as HEX[*TIMES], several joined with '+'. */
static size_t parse_bytes(char *spec, unsigned char **bytes)
{
    size_t size = 0;
    *bytes = NULL;
    for (char *next; spec; spec = next) {
        next = cut(spec, "+");
        char *times = cut(spec, "*");
        size_t unit = strlen(spec) / 2;
        for (size_t n = times ? strtoul(times, NULL, 0) : 1; n; n--) {
            *bytes = realloc(*bytes, size + unit + 1);
            for (size_t i = 0; i < unit; i++) {
                char digits[3] = { spec[2 * i], spec[2 * i + 1], 0 };
                (*bytes)[size++] = (unsigned char)strtoul(digits, NULL, 16);
            }
        }
    }
    return size;
}

/* A name in which \xNN stands for a byte, cut to fit; what is behind it stays. */
static void parse_name(const char *spec, char name[IFNAMSIZ])
{
    size_t i = 0;
    for (; *spec && i < IFNAMSIZ; i++) {
        if (!strncmp(spec, "\\x", 2)) {
            char digits[3] = { spec[2], spec[3], 0 };
            name[i] = (char)strtoul(digits, NULL, 16);
            spec += 4;
        } else {
            name[i] = *spec++;
        }
    }
    if (i < IFNAMSIZ)
        name[i] = 0;
}
