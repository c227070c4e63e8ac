/* Steps that make ioctls, and what their arguments look like in memory. */

/* Programs that TUNATTACHFILTER is given stay where they are: the driver keeps the pointer. */
static struct sock_filter programs[16][8];
static unsigned program_count;

/* CODE.JT.JF.K;... */
static struct sock_fprog parse_program(char *spec)
{
    struct sock_filter *program = programs[program_count++ % 16];
    struct sock_fprog header = { 0, program };
    if (!strncmp(spec, "null", 4)) {
        header.filter = NULL;
        header.len = (unsigned short)strtoul(spec + 4, NULL, 0);
        return header;
    }
    if (!strncmp(spec, "bad", 3)) {
        header.filter = (struct sock_filter *)16;
        header.len = (unsigned short)strtoul(spec + 3, NULL, 0);
        return header;
    }
    for (char *next; spec && *spec && header.len < 8; spec = next) {
        next = cut(spec, ";");
        unsigned code, jt, jf;
        uint32_t k;
        if (sscanf(spec, "%x.%u.%u.%" SCNx32, &code, &jt, &jf, &k) != 4)
            break;
        program[header.len++] = (struct sock_filter) { (uint16_t)code, (uint8_t)jt, (uint8_t)jf, k };
    }
    return header;
}

/* What an argument in memory is to contain. */
static size_t parse_argument(char *spec, unsigned char **bytes, bool *is_request)
{
    char *rest = cut(spec, ":");
    *is_request = !strcmp(spec, "ifreq") || !strcmp(spec, "hw");
    if (*is_request) {
        struct ifreq request;
        memset(&request, 0xaa, sizeof request);
        char *more = cut(rest, ":");
        if (!strcmp(spec, "ifreq")) {
            parse_name(rest, request.ifr_name);
            request.ifr_flags = (short)number(more, NULL);
        } else {
            unsigned char *address;
            request.ifr_hwaddr.sa_family = (unsigned short)number(rest, NULL);
            memcpy(request.ifr_hwaddr.sa_data, address, parse_bytes(more, &address) % sizeof request.ifr_hwaddr.sa_data);
            free(address);
        }
        *bytes = malloc(sizeof request);
        memcpy(*bytes, &request, sizeof request);
        return sizeof request;
    }
    if (!strcmp(spec, "int") || !strcmp(spec, "fd")) {
        int value = *spec == 'f' ? *slot(&rest) : (int)number(rest, NULL);
        *bytes = malloc(sizeof value);
        memcpy(*bytes, &value, sizeof value);
        return sizeof value;
    }
    if (!strcmp(spec, "prog")) {
        struct sock_fprog header = parse_program(rest);
        *bytes = calloc(1, sizeof header);
        memcpy(*bytes, &header, sizeof header);
        return sizeof header;
    }
    if (!strcmp(spec, "filter")) {
        char *count = cut(rest, ":"), *entries = cut(count, ":");
        unsigned char *addresses;
        size_t size = parse_bytes(entries, &addresses);
        struct tun_filter header = { (uint16_t)number(rest, NULL), (uint16_t)number(count, NULL) };
        *bytes = malloc(sizeof header + size);
        memcpy(*bytes, &header, sizeof header);
        memcpy(*bytes + sizeof header, addresses, size);
        free(addresses);
        return sizeof header + size;
    }
    if (!strcmp(spec, "hex"))
        return parse_bytes(rest, bytes);
    fprintf(stderr, "no argument: %s\n", spec);
    abort();
}

static void say_request(struct text *out, const struct memory *m)
{
    const char *name = (const char *)m->at;
    size_t length = strnlen(name, IFNAMSIZ);
    say(out, " name=");
    for (size_t i = 0; i < length; i++)
        say(out, name[i] > ' ' && name[i] < 127 ? "%c" : "\\x%02x", (unsigned char)name[i]);
    say(out, "/");
    say_bytes(out, m->at + length, IFNAMSIZ - length);
    say(out, " data=");
    say_bytes(out, m->at + IFNAMSIZ, 16);
    if (m->size > IFNAMSIZ + 16) {
        say(out, " tail=");
        say_bytes(out, m->at + IFNAMSIZ + 16, m->size - IFNAMSIZ - 16);
    }
}

static void do_ioctl(char *rest, struct text *out)
{
    int file = *slot(&rest);
    unsigned long command = number(word(&rest), IOCTLS);
    char *spec = word(&rest);
    if (!strncmp(spec, "val:", 4)) {
        say_result(out, ioctl(file, command, number(spec + 4, NULL)));
        return;
    }
    size_t valid = SIZE_MAX, size = 0;
    enum place where = place(&spec, &valid);
    unsigned char *bytes = NULL;
    bool is_request = false;
    if (*spec)
        size = parse_argument(spec, &bytes, &is_request);
    struct memory m = memory(where, size, valid < size ? valid : where == PLAIN || where == READ_ONLY ? size : 0);
    fill(&m, bytes);
    free(bytes);
    long result = ioctl(file, command, m.at);
    if (result > 2 && (command == SIOCGSKNS || command == TUNGETDEVNETNS)) {
        say(out, "descriptor%s", fcntl((int)result, F_GETFD) & FD_CLOEXEC ? " cloexec" : "");
        close((int)result);
    } else {
        say_result(out, result);
    }
    if (m.valid == size && changed(&m) && is_request)
        say_request(out, &m);
    else if (m.valid && changed(&m) && command == TUNGETFILTER)
        say(out, " len=%u %s", ((struct sock_fprog *)m.at)->len, ((struct sock_fprog *)m.at)->filter ? "pointer" : "null");
    else if (m.valid && changed(&m))
        say(out, " "), say_bytes(out, m.at, changed(&m));
    release(&m, out);
}

/* The address of a tap is random unless it was set, which shows in the zeros that scripts use: only its kind can be compared. */
static void do_hwaddr(char *rest, struct text *out)
{
    struct ifreq request = { 0 };
    if (ioctl(*slot(&rest), SIOCGIFHWADDR, &request)) {
        say_result(out, -1);
        return;
    }
    const unsigned char *address = (const unsigned char *)request.ifr_hwaddr.sa_data;
    say(out, "family=%#x ", request.ifr_hwaddr.sa_family);
    if (memcmp(address + 1, "\0\0\0\0", 4))
        say(out, "random %s %s", *address & 2 ? "local" : "global", *address & 1 ? "group" : "unicast");
    else
        say_bytes(out, address, 6);
}

/* Loads a socket filter that returns a number. */
static void do_ebpf(char *rest, struct text *out)
{
    int *to = slot(&rest);
    struct bpf_insn program[] = {
        { .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = (int)number(word(&rest), NULL) },
        { .code = BPF_JMP | BPF_EXIT },
    };
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attributes.insns = (uintptr_t)program;
    attributes.insn_cnt = 2;
    attributes.license = (uintptr_t) "GPL";
    put(to, (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes), out);
}
