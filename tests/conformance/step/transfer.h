/* Steps that read and write. */

/* Pieces of a vector, joined with ','; UNIT xTIMES repeats one. The bytes of all stand one after the other. */
struct vector {
    struct iovec pieces[PIECES];
    int count;
};

/* LENGTHS gives sizes alone; else pieces are bytes, which are stored. `bad:SIZE` is a piece that is not mapped. */
static size_t parse_vector(char *spec, bool lengths, struct vector *v, unsigned char **bytes)
{
    size_t size = 0;
    v->count = 0;
    *bytes = NULL;
    for (char *next; spec; spec = next) {
        next = cut(spec, ",");
        char *times = strchr(spec, 'x');
        if (times)
            *times++ = 0;
        bool bad = !strncmp(spec, "bad:", 4);
        unsigned char *unit = NULL;
        size_t length = bad ? strtoul(spec + 4, NULL, 0) : lengths ? strtoul(spec, NULL, 0) : parse_bytes(spec, &unit);
        for (size_t n = times ? strtoul(times, NULL, 0) : 1; n && v->count < PIECES; n--) {
            v->pieces[v->count++] = (struct iovec) { bad ? (void *)16 : NULL, length };
            if (bad)
                continue;
            *bytes = realloc(*bytes, size + length + 1);
            if (unit)
                memcpy(*bytes + size, unit, length);
            size += length;
        }
        free(unit);
    }
    return size;
}

static void place_vector(struct vector *v, unsigned char *at)
{
    for (int i = 0; i < v->count; i++)
        if (!v->pieces[i].iov_base) {
            v->pieces[i].iov_base = at;
            at += v->pieces[i].iov_len;
        }
}

static void say_read(struct text *out, struct memory *m, long result)
{
    say_result(out, result);
    size_t end = m->valid ? changed(m) : 0;
    size_t expected = result > 0 ? (size_t)result : 0;
    if (end > expected)
        say(out, " beyond");
    else if (expected <= m->valid)
        end = expected;
    if (end)
        say(out, " "), say_bytes(out, m->at, end);
    release(m, out);
}

/* read SLOT [PLACE:]LENGTH, pread SLOT LENGTH OFFSET, preadv2 SLOT LENGTH FLAGS, readv SLOT LENGTHS */
static void read_as(const char *call, char *rest, struct text *out)
{
    int file = *slot(&rest);
    char *spec = word(&rest);
    if (!strcmp(call, "readv")) {
        struct vector *v = malloc(sizeof *v);
        unsigned char *bytes;
        size_t size = parse_vector(spec, true, v, &bytes);
        struct memory m = memory(PLAIN, size, size);
        fill(&m, NULL);
        place_vector(v, m.at);
        say_read(out, &m, readv(file, v->pieces, v->count));
        free(bytes);
        free(v);
        return;
    }
    size_t valid = SIZE_MAX;
    enum place where = place(&spec, &valid);
    size_t size = number(spec, NULL);
    struct memory m = memory(where, size, valid < size ? valid : where == PLAIN || where == READ_ONLY ? size : 0);
    fill(&m, NULL);
    struct iovec piece = { m.at, size };
    long result = !strcmp(call, "read") ? read(file, m.at, size)
        : !strcmp(call, "pread")        ? pread(file, m.at, size, (long)number(word(&rest), NULL))
                                        : preadv2(file, &piece, 1, -1, (int)number(word(&rest), NULL));
    say_read(out, &m, result);
}

static void do_read(char *rest, struct text *out) { read_as("read", rest, out); }
static void do_pread(char *rest, struct text *out) { read_as("pread", rest, out); }
static void do_preadv2(char *rest, struct text *out) { read_as("preadv2", rest, out); }
static void do_readv(char *rest, struct text *out) { read_as("readv", rest, out); }

/* write SLOT BYTES, write SLOT PLACE:BYTES, write SLOT bad:LENGTH, pwrite SLOT BYTES OFFSET */
static void write_as(const char *call, char *rest, struct text *out)
{
    int file = *slot(&rest);
    char *spec = word(&rest);
    unsigned char *bytes = NULL;
    size_t valid = SIZE_MAX, size;
    enum place where = place(&spec, &valid);
    if (where == PLAIN || where == EDGE || where == READ_ONLY)
        size = parse_bytes(spec, &bytes);
    else
        size = number(spec, NULL);
    struct memory m = memory(where, size, bytes ? (valid < size ? valid : size) : 0);
    fill(&m, bytes);
    free(bytes);
    say_result(out, !strcmp(call, "write") ? write(file, m.at, size) : pwrite(file, m.at, size, (long)number(word(&rest), NULL)));
    release(&m, out);
}

static void do_write(char *rest, struct text *out) { write_as("write", rest, out); }
static void do_pwrite(char *rest, struct text *out) { write_as("pwrite", rest, out); }

static void do_writev(char *rest, struct text *out)
{
    int file = *slot(&rest);
    struct vector *v = malloc(sizeof *v);
    unsigned char *bytes;
    size_t size = parse_vector(word(&rest), false, v, &bytes);
    struct memory m = memory(PLAIN, size, size);
    fill(&m, bytes);
    free(bytes);
    place_vector(v, m.at);
    say_result(out, writev(file, v->pieces, v->count));
    release(&m, out);
    free(v);
}

/* drain SLOT: reads until there is nothing; says how many there were, and the last */
static void do_drain(char *rest, struct text *out)
{
    int file = *slot(&rest), count = 0;
    unsigned char bytes[2048];
    long length = 0;
    for (long result; (result = read(file, bytes, sizeof bytes)) > 0; count++)
        length = result;
    say(out, "%d ", count);
    say_bytes(out, bytes, (size_t)length);
}
