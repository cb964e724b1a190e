/* What cuda_driver.py calls, with a check of every argument that it passes. */
#include <stddef.h>
#include <string.h>

static void *const kContext = (void *)0x7fff12345678;
static void *const kModule = (void *)0x7ffe00000010;
static void *const kFunction = (void *)0x7ffd00000020;
static void *current;
int max_dynamic_shared;

int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int *device, int index) { *device = index + 40; return index > 1 ? 101 : 0; }
int cuGetErrorString(int code, const char **text) {
  *text = code == 101 ? "invalid device ordinal" : NULL;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != 40 && device != 41) return 1;
  switch (attribute) {
    case 16: *value = 132; return 0;
    case 75: *value = 9; return 0;
    case 76: *value = 0; return 0;
    case 81: *value = 233472; return 0;
    case 97: *value = 232448; return 0;
  }
  return 1;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = kContext; return device < 40; }
int cuCtxPushCurrent_v2(void *context) { current = context; return context != kContext; }
int cuCtxPopCurrent_v2(void **context) { *context = current; current = NULL; return 0; }
int cuModuleLoadData(void **module, const char *image) {
  *module = kModule;
  return current != kContext || memcmp(image, "\177ELF\0image", 11) != 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = kFunction;
  return module != kModule || strcmp(name, "entry") != 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  *value = 1024;
  return attribute != 1 || function != kFunction;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  max_dynamic_shared = value;
  return function != kFunction || attribute != 8;
}
