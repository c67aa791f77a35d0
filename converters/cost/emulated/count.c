/* Counts the guest's instructions, and tells the guest the count as a clock.

qemu's user mode loads this library twice by the same name, so there is one counter: as a TCG plugin, it adds the
number of instructions of each block of guest code that runs; preloaded, it replaces the C library's clock_gettime,
with which qemu answers the guest's system call of that name. qemu 7.2, Linux on x86-64; it needs no C library.
*/
#include <stddef.h>
#include <stdint.h>

/* From qemu-plugin.h of qemu 7.2, which Debian does not package. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef struct qemu_info qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);

#define EXPORT __attribute__((visibility("default")))
enum { COUNT = 7000, ALL_CLOCKS_COUNT = 7001, CLOCKS_TELL_TIME = 7002 }; /* clocks of ours; Linux has no such ones */
enum { SYS_CLOCK_GETTIME = 228, MICROSECOND = 1000 };

struct timespec { long seconds, nanoseconds; };

EXPORT int qemu_plugin_version = 1;
static uint64_t count; /* exact where one thread of the guest runs */
static int counting_clocks;

static void add_to_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &count, qemu_plugin_tb_n_insns(block));
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, add_to_block);
    return 0;
}

/* COUNT is one instruction a nanosecond. While all clocks count, they are one instruction a microsecond, because the
profilers of runtimes have that resolution. */
EXPORT int clock_gettime(int clock, struct timespec *now)
{
    if (clock == ALL_CLOCKS_COUNT || clock == CLOCKS_TELL_TIME)
        counting_clocks = clock == ALL_CLOCKS_COUNT;
    if (clock >= COUNT && clock <= CLOCKS_TELL_TIME) {
        now->seconds = (long)(count / 1000000000), now->nanoseconds = (long)(count % 1000000000);
        return 0;
    }
    if (counting_clocks) {
        now->seconds = (long)(count / 1000000), now->nanoseconds = (long)(count % 1000000 * MICROSECOND);
        return 0;
    }
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_CLOCK_GETTIME), "D"((long)clock), "S"(now)
                     : "rcx", "r11", "memory");
    return result == 0 ? 0 : -1; /* qemu reports errno, which stays as it is: guests ask for clocks that exist */
}
