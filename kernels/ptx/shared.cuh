// Addresses in shared memory as instructions take them: 32 bits, in the shared state space.
#pragma once
#include "numeric.cuh"

DEVICE unsigned shared_address(const void* p) {
#ifdef GN_EMULATED
    return gn::shared_address(p);
#else
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
#endif
}
