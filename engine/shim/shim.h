// What the files of the shim share. Rust's side: engine/src/ops/native.rs.
//
// Tensors cross as `torch::Tensor*`, as in torch-sys. Functions give null when all went well,
// and else a message that the caller frees with `heirloom_free`: no exception crosses.
#pragma once

#include <cstring>
#include <exception>

template <typename F> char *heirloom_guarded(F &&work) {
    try {
        work();
        return nullptr;
    } catch (const std::exception &error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("an exception of an unknown type");
    }
}
