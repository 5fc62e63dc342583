/* A CUDA runtime without a GPU, for tests of everything above it: torch's allocator, streams, autograd, graphs.
 *
 * Preloaded, it answers in place of NVIDIA's libcudart. Memory is the host's and starts as zeros; copies are real;
 * a kernel is counted and not run. So no value that a kernel should have computed, and no time, means anything.
 * README.md lists the environment variables that inject faults; a test reads the counters below through ctypes. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#define MOST_DEVICES 8
#define PAGE 4096

atomic_long stub_launches, stub_replays, stub_graphs, stub_syncs, stub_h2d, stub_d2h, stub_d2d, stub_memsets;
atomic_long stub_used[MOST_DEVICES];    /* bytes allocated */
atomic_long stub_touched[MOST_DEVICES]; /* allocations and launches: 0 where this process left a device alone */

static _Thread_local int current;
static _Thread_local cudaError_t pending; /* what cudaGetLastError returns next; an error that passes */
static _Atomic int broken;                /* an error that stays, as after an illegal access */
static _Atomic(cudaStream_t) captured;    /* the stream that is being captured */

/* ---- faults ---------------------------------------------------------------------------------------------------- */

static long number(const char *name, long absent) {
    const char *value = getenv(name);
    return value && *value ? atol(value) : absent;
}

/* Whether the fault is this process's: always, or where CUDA_STUB_ONCE names a file, for the one that removes it. */
static int ours(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int known = -1;
    const char *path = getenv("CUDA_STUB_ONCE");
    if (!path || !*path) return 1;
    pthread_mutex_lock(&lock);
    if (known < 0) known = unlink(path) == 0;
    pthread_mutex_unlock(&lock);
    return known;
}

static int here(void) {
    long device = number("CUDA_STUB_FAIL_ON", -1);
    return device < 0 || device == current;
}

static cudaError_t passing(cudaError_t error) { return pending = error; }
static cudaError_t state(void) { return (cudaError_t)broken; }

static cudaError_t launched(void) {
    static atomic_long on_device[MOST_DEVICES];
    long fail_at = number("CUDA_STUB_FAIL_AT", 0);
    stub_launches++;
    stub_touched[current]++;
    if (fail_at > 0 && here() && ++on_device[current] == fail_at && ours()) broken = cudaErrorIllegalAddress;
    return state();
}

static cudaError_t waited(void) {
    stub_syncs++;
    return captured ? passing(cudaErrorStreamCaptureUnsupported) : state();
}

/* ---- devices and errors ---------------------------------------------------------------------------------------- */

static int devices(void) { return (int)number("CUDA_STUB_DEVICES", 1); }

cudaError_t cudaGetDeviceCount(int *count) { *count = devices(); return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices()) return passing(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaInitDevice(int device, unsigned flags, unsigned more) { return state(); }
cudaError_t cudaDeviceSynchronize(void) { return waited(); }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    snprintf(id, length, "0000:%02x:00.0", device);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { *pool = malloc(8); return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "CUDA stub");
    found->uuid.bytes[15] = device;
    found->totalGlobalMem = number("CUDA_STUB_MEMORY", 80L << 30);
    found->major = 9;
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->sharedMemPerBlock = 48 << 10;
    found->sharedMemPerBlockOptin = 227 << 10;
    found->sharedMemPerMultiprocessor = 228 << 10;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxBlocksPerMultiProcessor = 32;
    found->l2CacheSize = 50 << 20;
    found->unifiedAddressing = 1;
    found->pciBusID = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = broken ? state() : pending;
    pending = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return broken ? state() : pending; }
const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorDevicesUnavailable: return "CUDA-capable device(s) is/are busy or unavailable";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "another error";
    }
}
const char *cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

/* torch asks the driver, too, through this function and as libcuda.so.1, which is a second name of this library. It is
 * told that every device is in use, and that all else succeeds. */
static int succeed(void) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **found, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *found = strcmp(symbol, "cuDevicePrimaryCtxGetState") ? (void *)succeed : (void *)cuDevicePrimaryCtxGetState;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* ---- memory: a page in front of each allocation holds its size and device --------------------------------------- */

struct head { size_t size; int device; };

cudaError_t cudaMalloc(void **pointer, size_t size) {
    if (number("CUDA_STUB_BAD_DEVICE", -1) == current) broken = cudaErrorDevicesUnavailable;
    if (broken) return state();
    stub_touched[current]++;
    if (here() && stub_used[current] + (long)size > number("CUDA_STUB_MEMORY", 80L << 30) && ours())
        return passing(cudaErrorMemoryAllocation);
    char *start = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return passing(cudaErrorMemoryAllocation);
    *(struct head *)start = (struct head){size, current};
    stub_used[current] += size;
    *pointer = start + PAGE;
    return cudaSuccess;
}
cudaError_t cudaFree(void *pointer) {
    if (!pointer) return state();
    struct head *start = (struct head *)((char *)pointer - PAGE);
    stub_used[start->device] -= start->size;
    munmap(start, start->size + PAGE);
    return state();
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *total = number("CUDA_STUB_MEMORY", 80L << 30);
    *left = *total - stub_used[current];
    return state();
}
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    *pointer = aligned_alloc(512, (size + 511) / 512 * 512);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *pointer) { free(pointer); return cudaSuccess; }
cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void *pointer) { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

static cudaError_t copied(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (kind == cudaMemcpyHostToDevice) stub_h2d++;
    else if (kind == cudaMemcpyDeviceToHost) stub_d2h++;
    else stub_d2d++;
    if (!broken) memmove(to, from, size);
    return state();
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copied(to, from, size, kind);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    copied(to, from, size, kind);
    return waited();
}
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset, enum cudaMemcpyKind kind) {
    return state();
}
cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { *pointer = calloc(1, 1 << 16); return state(); }
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    stub_memsets++;
    if (!broken) memset(to, value, size);
    return state();
}
cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream) {
    return launched();
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream) {
    return launched();
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **values) { return launched(); }
cudaError_t __cudaGetKernel(cudaKernel_t *found, const void *kernel) { *found = (cudaKernel_t)kernel; return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int size, size_t shared) {
    *blocks = 4;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size, size_t shared,
                                                                   unsigned flags) {
    *blocks = 4;
    return cudaSuccess;
}

/* Triton's kernels are launched by the driver. Attributes are numbers of cuda.h: the version of the device, and limits
 * that all are large enough. */
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = CUDART_VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = devices(); return 0; }
int cuDeviceGet(int *device, int which) { *device = which; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : attribute == 97 ? 227 << 10 : 65536;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { *device = current; return 0; }
int cuCtxGetLimit(size_t *value, int limit) { *value = 1 << 20; return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return state(); }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int how) { return 0; }
int cuPointerGetAttribute(void *value, int attribute, unsigned long long pointer) {
    *(unsigned long long *)value = pointer;
    return 0;
}
int cuGetErrorString(int error, const char **told) { *told = cudaGetErrorString((cudaError_t)error); return 0; }
int cuLaunchKernelEx(const void *how, void *function, void **values, void **more) { return launched(); }

/* ---- streams and events: all work is done when it is asked for ---------------------------------------------------- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) { *stream = malloc(8); return state(); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); return state(); }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return state(); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return state(); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, sizeof(struct timespec));
    return state();
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return state(); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return state(); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
    return state();
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited(); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    struct timespec *from = (struct timespec *)begin, *to = (struct timespec *)end;
    *milliseconds = (to->tv_sec - from->tv_sec) * 1e3f + (to->tv_nsec - from->tv_nsec) / 1e6f;
    return state();
}

/* ---- graphs: a capture is counted launch by launch, a replay as one ------------------------------------------------ */

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    stub_graphs++;
    captured = stream;
    return state();
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    captured = NULL;
    *graph = malloc(8);
    return state();
}
static enum cudaStreamCaptureStatus status_of(cudaStream_t stream) {
    return captured && captured == stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = status_of(stream);
    return state();
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
    *status = status_of(stream);
    if (id) *id = stub_graphs;
    if (graph) *graph = (cudaGraph_t)1;
    if (count) *count = 0;
    return state();
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { *count = 1; return state(); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) {
    *ready = malloc(8);
    return state();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
    stub_replays++;
    launched();
    stub_launches--; /* as a fault's turn it counts, as a kernel of the host it does not */
    return state();
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); return state(); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { free(ready); return state(); }
