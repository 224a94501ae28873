/* The part of the CANN runtime that torch_npu cannot be imported without, on host memory.

   Device memory is host memory, streams and events are empty, and whatever computes fails: an
   operator that nobody simulates must never return what happens to lie in its output.

   CANN_STUB_DEVICES  how many NPUs there seem to be (0 when unset)
   CANN_STUB_SOC      which chip they seem to be; unset: Ascend910_9391 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, BAD_PARAMETER = 107000, BAD_DEVICE = 107001, UNSUPPORTED = 207000, NO_MEMORY = 207001 };
static const uintptr_t FIRST_CONTEXT = 0x1000;
static const size_t DEVICE_BYTES = (size_t)64 << 30;

static __thread int current = -1;
static int64_t options[64];

static int devices(void) {
    const char *count = getenv("CANN_STUB_DEVICES");
    return count ? atoi(count) : 0;
}

/* torch_npu queues launches and loses the error of all but the first; this makes it wait. */
__attribute__((constructor)) static void launch_synchronously(void) {
    setenv("TASK_QUEUE_ENABLE", "0", 1);
}

/* --- the machine */
int aclInit(const char *path) { (void)path; return OK; }
int aclFinalize(void) { return OK; }
const char *aclGetRecentErrMsg(void) {
    return "this is a stand-in for CANN: nothing can be computed on it";
}
const char *aclrtGetSocName(void) {
    const char *name = getenv("CANN_STUB_SOC");
    return name ? name : "Ascend910_9391";
}
int aclrtGetDeviceCount(uint32_t *count) { *count = (uint32_t)devices(); return OK; }
int aclrtSetDevice(int32_t device) {
    if (device < 0 || device >= devices()) return BAD_DEVICE;
    current = device;
    return OK;
}
int aclrtGetDevice(int32_t *device) {
    if (current < 0) return BAD_DEVICE;
    *device = current;
    return OK;
}
int aclrtResetDevice(int32_t device) { (void)device; return OK; }
int aclrtCreateContext(void **context, int32_t device) {
    *context = (void *)(FIRST_CONTEXT + (uintptr_t)device);
    return OK;
}
int aclrtGetCurrentContext(void **context) {
    return current < 0 ? BAD_DEVICE : aclrtCreateContext(context, current);
}
int aclrtSetCurrentContext(void *context) {
    current = (int)((uintptr_t)context - FIRST_CONTEXT);
    return OK;
}
int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    (void)device;
    if (flags) *flags = 0;
    *active = devices() > 0;
    return OK;
}
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t a, int32_t b) {
    (void)a; (void)b;
    *can = 0;
    return OK;
}
int aclGetDeviceCapability(uint32_t device, int what, int64_t *value) {
    (void)device; (void)what;
    *value = 0;
    return OK;
}

/* --- memory */
static int allocate(void **pointer, size_t bytes) {
    return posix_memalign(pointer, 512, bytes ? bytes : 512) ? NO_MEMORY : OK;
}
int aclrtMalloc(void **pointer, size_t bytes, int policy) {
    (void)policy;
    return devices() ? allocate(pointer, bytes) : BAD_DEVICE;
}
int aclrtMallocAlign32(void **pointer, size_t bytes, int policy) {
    return aclrtMalloc(pointer, bytes, policy);
}
int aclrtFree(void *pointer) { free(pointer); return OK; }
int aclrtMallocHost(void **pointer, size_t bytes) { return allocate(pointer, bytes); }
int aclrtFreeHost(void *pointer) { free(pointer); return OK; }
int aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind) {
    (void)kind;
    if (bytes > room) return BAD_PARAMETER;
    memcpy(to, from, bytes);
    return OK;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *stream) {
    (void)stream;
    return aclrtMemcpy(to, room, from, bytes, kind);
}
int aclrtMemset(void *to, size_t room, int32_t value, size_t bytes) {
    if (bytes > room) return BAD_PARAMETER;
    memset(to, value, bytes);
    return OK;
}
int aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t bytes, void *stream) {
    (void)stream;
    return aclrtMemset(to, room, value, bytes);
}
int aclrtGetMemInfo(int kind, size_t *available, size_t *total) {
    (void)kind;
    *total = *available = devices() ? DEVICE_BYTES : 0;
    return OK;
}

/* --- streams and events: nothing is ever under way */
static int handle(void **made) {
    if (!devices()) return BAD_DEVICE;
    *made = calloc(1, sizeof(struct timespec) + 64);
    return *made ? OK : NO_MEMORY;
}
int aclrtCreateStream(void **stream) { return handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    (void)priority; (void)flags;
    return handle(stream);
}
int aclrtDestroyStream(void *stream) { free(stream); return OK; }
int aclrtDestroyStreamForce(void *stream) { free(stream); return OK; }
int aclrtStreamQuery(void *stream, int *status) { (void)stream; *status = 0; return OK; }
int aclrtSynchronizeStream(void *stream) { (void)stream; return OK; }
int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t ms) { (void)stream; (void)ms; return OK; }
int aclrtSynchronizeDevice(void) { return OK; }
int aclrtSynchronizeDeviceWithTimeout(int32_t ms) { (void)ms; return OK; }
int aclrtCreateEventWithFlag(void **event, uint32_t flags) { (void)flags; return handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flags) { (void)flags; return handle(event); }
int aclrtDestroyEvent(void *event) { free(event); return OK; }
int aclrtRecordEvent(void *event, void *stream) {
    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, event);
    return OK;
}
int aclrtQueryEventStatus(void *event, int *status) { (void)event; *status = 1; return OK; }
int aclrtQueryEventWaitStatus(void *event, int *status) { (void)event; *status = 0; return OK; }
int aclrtEventElapsedTime(float *ms, void *begin, void *end) {
    struct timespec *a = begin, *b = end;
    *ms = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6);
    return OK;
}

/* --- options */
int aclrtSetSysParamOpt(int option, int64_t value) {
    if (option < 0 || option >= 64) return BAD_PARAMETER;
    options[option] = value;
    return OK;
}
int aclrtGetSysParamOpt(int option, int64_t *value) {
    if (option < 0 || option >= 64) return BAD_PARAMETER;
    *value = options[option];
    return OK;
}
int aclrtCtxSetSysParamOpt(int option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
int aclrtCtxGetSysParamOpt(int option, int64_t *value) { return aclrtGetSysParamOpt(option, value); }
int aclSetCompileopt(int option, const char *value) { (void)option; (void)value; return OK; }
int aclrtSetDeviceSatMode(int mode) { (void)mode; return OK; }
int aclrtSetOpExecuteTimeOut(uint32_t seconds) { (void)seconds; return OK; }
int aclrtSetOpWaitTimeout(uint32_t seconds) { (void)seconds; return OK; }
int aclrtSetStreamOverflowSwitch(void *stream, uint32_t on) { (void)stream; (void)on; return OK; }
int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *on) { (void)stream; *on = 0; return OK; }

/* --- computing */
int aclopCompileAndExecute() { return UNSUPPORTED; }
int aclopCompileAndExecuteV2() { return UNSUPPORTED; }
int rtKernelLaunch() { return UNSUPPORTED; }
int aclrtLaunchKernelWithHostArgs() { return UNSUPPORTED; }
