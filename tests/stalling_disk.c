/* A disk whose flushes wait while the file that STALL_FILE names exists. PostgreSQL loads it with LD_PRELOAD. */
#include <sys/syscall.h>
#include <stdlib.h>
#include <unistd.h>

static long flush(long number, int descriptor) {
    const char *file = getenv("STALL_FILE");
    while (file && access(file, F_OK) == 0)
        usleep(5000);
    return syscall(number, descriptor);
}

int fsync(int descriptor) { return flush(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return flush(SYS_fdatasync, descriptor); }
