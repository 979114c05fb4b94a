// Nodes of the autograd graph whose backward pass is a function of Rust's.
//
// Reference: `torch::autograd::Node` (torch/csrc/autograd/function.h).

#include "shim.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/torch.h>
#include <cstdlib>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

// Takes the gradients of the outputs (null where there is none), which become the callee's,
// and fills in those of the inputs, which become ours.
using Backward = char *(*)(void *context, torch::Tensor **gradients, size_t outputs,
                           torch::Tensor **results, size_t inputs);
using Drop = void (*)(void *context);

struct Node : torch::autograd::Node {
    Node(void *context, Backward backward, Drop drop)
        : context(context), backward(backward), drop(drop) {}

    ~Node() override { release_variables(); }

    std::string name() const override { return "HeirloomNode"; }

    void release_variables() override {
        if (void *held = std::exchange(context, nullptr)) {
            drop(held);
        }
    }

    torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
        void *held = std::exchange(context, nullptr);
        if (!held) {
            throw std::runtime_error("the graph was gone through backward a second time");
        }
        std::vector<torch::Tensor *> given(gradients.size(), nullptr);
        for (size_t i = 0; i < gradients.size(); i++) {
            if (gradients[i].defined()) {
                given[i] = new torch::Tensor(std::move(gradients[i]));
            }
        }
        std::vector<torch::Tensor *> found(num_outputs(), nullptr);
        char *message = backward(held, given.data(), given.size(), found.data(), found.size());
        torch::autograd::variable_list results(found.size());
        for (size_t i = 0; i < found.size(); i++) {
            if (found[i]) {
                results[i] = std::move(*found[i]);
                delete found[i];
            }
        }
        if (message) {
            std::string text(message);
            free(message);
            throw std::runtime_error(text);
        }
        return results;
    }

    void *context;
    Backward backward;
    Drop drop;
};

} // namespace

extern "C" {

void heirloom_free(char *message) { free(message); }

// A message that C++ may free, of text that is Rust's.
char *heirloom_message(const char *text, size_t length) { return strndup(text, length); }

// Makes `outputs` depend on `inputs`. Where no gradient is asked for, they stay as they are.
// `context` is dropped after the backward pass, or with the graph.
char *heirloom_node(torch::Tensor **inputs, size_t input_count, torch::Tensor **outputs,
                    size_t output_count, void *context, Backward backward, Drop drop) {
    return heirloom_guarded([&] {
        auto node = std::shared_ptr<Node>(new Node(context, backward, drop), torch::autograd::deleteNode);
        torch::autograd::variable_list from;
        bool wanted = false;
        for (size_t i = 0; i < input_count; i++) {
            from.push_back(*inputs[i]);
            wanted = wanted || inputs[i]->requires_grad();
        }
        if (!wanted || !torch::GradMode::is_enabled()) {
            return;
        }
        node->set_next_edges(torch::autograd::collect_next_edges(from));
        for (size_t i = 0; i < output_count; i++) {
            // Without the history that the computation may have given it.
            *outputs[i] = outputs[i]->variable_data();
            torch::autograd::set_history(*outputs[i], node);
        }
    });
}
}
