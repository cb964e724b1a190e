/* A GPU that is not there: what torch needs of the CUDA runtime and driver, of cuDNN and of cuBLAS
   to run a network, without a kernel being executed. Memory is reserved and never touched by
   kernels, so that results are zeros. Preloaded under the driver's name; bench_launches.py adds an
   empty function for every other symbol that torch needs. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <driver_types.h>

#define OK 0
#define COUNTED(name, counter) int name(void) { ++counter; return OK; }

/* Launches by torch, by mmcontext, and calls of cuDNN and cuBLAS that launch. */
long stub_torch, stub_own, stub_cudnn, stub_cublas;

static void *handle(void) {
  static uintptr_t next;
  return (void *)(next += 16);
}
static int none(void) { return OK; }

/* The device: an H200. */
enum { MULTIPROCESSORS = 132, SHARED_PER_SM = 233472, SHARED_PER_BLOCK = 232448 };
static const size_t kMemory = 140ull << 30;

static int attribute(int number) {
  switch (number) {
    case 10: return 32;                    /* warp */
    case 16: return MULTIPROCESSORS;
    case 75: return 9;
    case 81: return SHARED_PER_SM;
    case 97: return SHARED_PER_BLOCK;
  }
  return 0;
}
int cudaDeviceGetAttribute(int *value, int number, int d) { *value = attribute(number); return OK; }
int cuDeviceGetAttribute(int *value, int number, int d) { *value = attribute(number); return OK; }
int cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stub");
  p->major = 9;
  p->multiProcessorCount = MULTIPROCESSORS;
  p->totalGlobalMem = kMemory;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = INT32_MAX;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = SHARED_PER_BLOCK;
  p->sharedMemPerMultiprocessor = SHARED_PER_SM;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 50 << 20;
  p->textureAlignment = 512;
  return OK;
}
int cudaGetDeviceCount(int *count) { *count = 1; return OK; }
int cudaGetDevice(int *device) { *device = 0; return OK; }
int cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }
int cudaDeviceGetPCIBusId(char *id, int size, int d) { strncpy(id, "0000:00:00.0", size); return OK; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = kMemory; return OK; }
const char *cudaGetErrorString(int e) { return "error of the stub"; }
const char *cudaGetErrorName(int e) { return "error of the stub"; }
int cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned v, unsigned long long o,
                                     int *status) {
  *f = (void *)none;
  if (status) *status = OK;
  return OK;
}

/* Streams and events. */
int cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return OK; }
int cudaStreamCreateWithPriority(void **s, unsigned f, int p) { *s = handle(); return OK; }
int cudaStreamGetPriority(void *s, int *priority) { *priority = 0; return OK; }

/* Graphs: what is launched in the meantime is counted, and nothing when they are replayed. */
static unsigned long long capture;         /* its number, while one is under way */
int cudaStreamBeginCapture(void *s, int mode) {
  static unsigned long long captures;
  capture = ++captures;
  return OK;
}
int cudaStreamIsCapturing(void *s, int *status) { *status = capture != 0; return OK; }
int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id, void **graph) {
  *status = capture != 0;
  if (id) *id = capture;
  if (graph) *graph = (void *)16;
  return OK;
}
int cudaStreamEndCapture(void *s, void **graph) {
  capture = 0;
  *graph = handle();
  return OK;
}
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  *executable = handle();
  return OK;
}
int cudaGraphGetNodes(void *graph, void *nodes, size_t *count) { *count = 1; return OK; }

int cudaEventCreateWithFlags(void **e, unsigned f) { *e = handle(); return OK; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1; return OK; }

/* Memory: a reservation. Copies between host and device are made, as Python reads results. */
int cudaMalloc(void **p, size_t size) {
  *p = mmap(NULL, size + 512, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *p == MAP_FAILED ? 2 : OK;
}
int cudaHostAlloc(void **p, size_t size, unsigned f) { *p = malloc(size); return OK; }
int cudaFreeHost(void *p) { free(p); return OK; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *s) {
  if (kind == cudaMemcpyDeviceToDevice) ++stub_torch;
  else memcpy(to, from, size);
  return OK;
}
COUNTED(cudaMemsetAsync, stub_torch)
int cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  return OK;
}

/* Kernels of torch. */
void **__cudaRegisterFatBinary(void *f) { static void *binary; return &binary; }
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) {
  *shared = 0;
  *stream = NULL;
  return OK;
}
int __cudaGetKernel(const void **kernel, const void *f) { *kernel = f; return OK; }
COUNTED(__cudaLaunchKernel, stub_torch)
COUNTED(cudaLaunchKernelExC, stub_torch)
int cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 90;
  a->maxDynamicSharedSizeBytes = SHARED_PER_BLOCK;
  return OK;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int size,
                                                           size_t shared, unsigned flags) {
  *blocks = 8;
  return OK;
}

/* The driver, for our own kernels. */
int cuInit(unsigned flags) { return OK; }
int cuGetErrorString(int code, const char **text) { *text = "error of the stub"; return OK; }
int cuDeviceGet(int *device, int index) { *device = 0; return OK; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int d) { *context = handle(); return OK; }
int cuCtxGetCurrent(void **context) { *context = (void *)16; return OK; }
int cuCtxSetCurrent(void *context) { return OK; }
int cuCtxPushCurrent_v2(void *context) { return OK; }
int cuCtxPopCurrent_v2(void **context) { return OK; }
int cuModuleLoadData(void **module, const void *image) { *module = handle(); return OK; }
int cuModuleGetFunction(void **f, void *module, const char *name) { *f = handle(); return OK; }
int cuFuncGetAttribute(int *value, int number, void *f) { *value = 0; return OK; }
int cuFuncSetAttribute(void *f, int number, int value) { return OK; }
COUNTED(cuLaunchKernel, stub_own)

/* cuBLAS. */
int cublasCreate_v2(void **h) { *h = handle(); return OK; }
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return OK; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return OK; }
COUNTED(cublasGemmEx, stub_cublas)
COUNTED(cublasGemmStridedBatchedEx, stub_cublas)
COUNTED(cublasSgemm_v2, stub_cublas)
COUNTED(cublasSgemmStridedBatched, stub_cublas)
COUNTED(cublasSgemmEx, stub_cublas)
COUNTED(cublasLtMatmul, stub_cublas)
int cublasLtMatmulDescCreate(void **d, int c, int s) { *d = malloc(64); return OK; }
int cublasLtMatmulDescDestroy(void *d) { free(d); return OK; }
int cublasLtMatrixLayoutCreate(void **l) { *l = malloc(64); return OK; }
int cublasLtMatrixLayoutDestroy(void *l) { free(l); return OK; }
int cublasLtMatmulPreferenceCreate(void **p) { *p = malloc(64); return OK; }
int cublasLtMatmulPreferenceDestroy(void *p) { free(p); return OK; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *a, void *b, void *c, void *d, void *p,
                                   int wanted, void *results, int *found) {
  memset(results, 0, 96);
  *found = 1;
  return OK;
}

/* cuDNN's batch norm needs no memory. */
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void *h, int mode, int ops, void *x, void *z, void *y, void *norm, void *act, size_t *size) {
  *size = 0;
  return OK;
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void *h, int mode, int ops, void *x, void *y, void *grad, void *of_z, void *of_x, void *norm,
    void *act, size_t *size) {
  *size = 0;
  return OK;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int mode, int ops, void *act,
                                                         void *x, size_t *size) {
  *size = 0;
  return OK;
}

/* Its convolutions: one engine for all. Numbers as in its cudnn_graph.h. */
enum { KNOBS = 302, KNOB_INFO = 1302, NUMERICAL_NOTE = 1303, BEHAVIOUR_NOTE = 1305 };
enum { TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_DOUBLE = 5, TYPE_DESCRIPTOR = 15, TYPE_CHAR = 24 };
int cudnnCreate(void **h) { *h = handle(); return OK; }
size_t cudnnGetCudartVersion(void) { return 13000; }
size_t cudnnGetVersion(void) { return CUDNN; }
const char *cudnnGetErrorString(int e) { return "error of the stub"; }
int cudnnBackendCreateDescriptor(int type, void **d) { *d = calloc(1, 64); return OK; }
int cudnnBackendDestroyDescriptor(void *d) { free(d); return OK; }
COUNTED(cudnnBackendExecute, stub_cudnn)
int cudnnBackendGetAttribute(void *d, int name, int type, int64_t wanted, int64_t *count,
                             void *values) {
  const int empty = name == KNOBS || name == KNOB_INFO || name == NUMERICAL_NOTE ||
                    name == BEHAVIOUR_NOTE;
  if (count) *count = !empty;
  if (empty || wanted < 1 || !values || type == TYPE_DESCRIPTOR) return OK;
  memset(values, 0, type == TYPE_INT64 || type == TYPE_DOUBLE ? 8
                    : type == TYPE_BOOLEAN || type == TYPE_CHAR ? 1 : 4);
  return OK;
}
