//! The C++ shim (`engine/shim`), as Rust calls it.
//!
//! Owns nodes of the graph: pointers, messages, panics. The calls of each operation stand
//! beside its reference, those of loops over elements in [`super::loops`]. Tensors cross as
//! torch-sys has them.

#![expect(unsafe_code, reason = "functions of C++ that take pointers to tensors")]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::profile;
use crate::error::Result;

/// What a node of the graph does in the backward pass: from the gradients of its outputs,
/// where there are some, those of its inputs, where they are wanted.
type Backward = Box<dyn FnOnce(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> + Send>;

unsafe extern "C" {
    fn heirloom_free(message: *mut c_char);
    fn heirloom_message(text: *const c_char, length: usize) -> *mut c_char;
    fn heirloom_node(
        inputs: *const *mut C_tensor,
        input_count: usize,
        outputs: *const *mut C_tensor,
        output_count: usize,
        context: *mut c_void,
        backward: extern "C" fn(
            *mut c_void,
            *const *mut C_tensor,
            usize,
            *mut *mut C_tensor,
            usize,
        ) -> *mut c_char,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

/// Makes `outputs` (an array or a `Vec`), computed from `inputs` without a graph, depend on them: in the backward
/// pass `backward` is asked once for the gradients of all inputs, in their order. What it
/// needs, it holds, until it was asked or the graph is dropped.
///
/// A gradient that comes in is `None` where nothing depends on that output.
pub fn node<T: AsMut<[Tensor]>>(
    inputs: &[&Tensor],
    mut outputs: T,
    backward: impl FnOnce(&[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> + Send + 'static,
) -> Result<T> {
    let made_in = profile::current();
    let backward: Backward = Box::new(move |given| {
        let _scope = profile::backward(made_in);
        backward(given)
    });
    let context: *mut Backward = Box::into_raw(Box::new(backward));
    let inputs: Vec<_> = inputs.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
    let pointers: Vec<_> = outputs.as_mut().iter_mut().map(Tensor::as_mut_ptr).collect();
    // SAFETY: the tensors live throughout the call; the context is freed by `forget` or taken
    // back by `gradients`, whichever comes first, and by nobody else.
    let message = unsafe {
        heirloom_node(
            inputs.as_ptr(),
            inputs.len(),
            pointers.as_ptr(),
            pointers.len(),
            context.cast(),
            gradients,
            forget,
        )
    };
    check(message)?;
    Ok(outputs)
}

/// Called by the backward pass.
extern "C" fn gradients(
    context: *mut c_void,
    given: *const *mut C_tensor,
    outputs: usize,
    found: *mut *mut C_tensor,
    inputs: usize,
) -> *mut c_char {
    // SAFETY: `context` is what `node` made, handed over once; the gradients are ours from here
    // on, and there are as many as said.
    let (backward, given) = unsafe {
        let backward = Box::from_raw(context.cast::<Backward>());
        let given = std::slice::from_raw_parts(given, outputs).iter();
        let tensor =
            |pointer: &*mut C_tensor| (!pointer.is_null()).then(|| Tensor::from_ptr(*pointer));
        (backward, given.map(tensor).collect::<Vec<_>>())
    };
    let results = catch_unwind(AssertUnwindSafe(|| tch::no_grad(|| backward(&given))));
    let text = match results {
        Ok(Ok(results)) if results.len() == inputs => {
            for (place, result) in results.into_iter().enumerate() {
                let Some(result) = result else { continue };
                // SAFETY: `found` has room for as many; the clone becomes C++'s.
                unsafe {
                    *found.add(place) = torch_sys::at_shallow_clone(result.as_ptr().cast_mut())
                };
            }
            return std::ptr::null_mut();
        }
        Ok(Ok(results)) => format!("{} gradients for {inputs} inputs", results.len()),
        Ok(Err(error)) => with_causes(&error),
        Err(_) => "a panic in the backward pass".to_owned(),
    };
    // SAFETY: the text lives throughout the call.
    unsafe { heirloom_message(text.as_ptr().cast(), text.len()) }
}

/// The error travels through C++ as a text.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Called where nobody asks for the gradients any more.
extern "C" fn forget(context: *mut c_void) {
    // SAFETY: `context` is what `node` made, and was not handed to `gradients`.
    let held = unsafe { Box::from_raw(context.cast::<Backward>()) };
    // A destructor that panics must not unwind into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(held)));
}

/// The error that the shim's message is; a message is freed.
pub(crate) fn check(message: *mut c_char) -> Result<()> {
    text(message).map_or(Ok(()), |text| Err(TchError::Torch(text).into()))
}

/// What the shim's message says, if there is one; it is freed.
pub(crate) fn text(message: *mut c_char) -> Option<String> {
    if message.is_null() {
        return None;
    }
    // SAFETY: a message of the shim's ends with a zero, and is ours to free.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        heirloom_free(message);
        text
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// `a · b` and `a + b`, with a backward pass by hand.
    fn both(a: &Tensor, b: &Tensor) -> Vec<Tensor> {
        let outputs = tch::no_grad(|| vec![a * b, a + b]);
        let (x, y) = (a.detach(), b.detach());
        node(&[a, b], outputs, move |gradients| {
            let zero = || x.zeros_like();
            let product = gradients[0].as_ref().map_or_else(zero, Tensor::shallow_clone);
            let sum = gradients[1].as_ref().map_or_else(zero, Tensor::shallow_clone);
            Ok(vec![Some(&product * &y + &sum), Some(&product * &x + &sum)])
        })
        .unwrap()
    }

    #[test]
    fn gradients_flow_through_a_backward_pass_by_hand() {
        let (a, b) = (leaf(&[1.0, 2.0]), leaf(&[3.0, 5.0]));
        let outputs = both(&a, &b);
        ((&outputs[0] * 2.0).sum(Kind::Float) + outputs[1].sum(Kind::Float)).backward();
        assert_eq!(Vec::<f32>::try_from(a.grad()).unwrap(), [7.0, 11.0]);
        assert_eq!(Vec::<f32>::try_from(b.grad()).unwrap(), [3.0, 5.0]);
    }

    #[test]
    fn an_output_that_nothing_depends_on_has_no_gradient() {
        let (a, b) = (leaf(&[1.0]), leaf(&[3.0]));
        both(&a, &b)[0].sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(a.grad()).unwrap(), [3.0]);
    }

    #[test]
    fn without_a_graph_nothing_is_kept() {
        let held = std::sync::Arc::new(());
        let seen = std::sync::Arc::downgrade(&held);
        let a = Tensor::from_slice(&[1.0f32]);
        let outputs = node(&[&a], vec![&a * 2.0], move |_| {
            drop(held);
            Ok(vec![None])
        });
        assert!(!outputs.unwrap()[0].requires_grad());
        assert!(seen.upgrade().is_none());
    }

    #[test]
    fn errors_and_panics_of_the_backward_pass_are_errors() {
        let failing: [fn() -> Result<_>; 3] = [
            || Err(TchError::Torch("no such device".to_owned()).into()),
            || panic!("out of bounds"),
            || Ok(Vec::new()),
        ];
        for (backward, said) in
            failing.into_iter().zip(["no such device", "a panic", "0 gradients"])
        {
            let a = leaf(&[1.0]);
            let outputs = node(&[&a], vec![tch::no_grad(|| &a * 2.0)], move |_| backward());
            let sum = outputs.unwrap()[0].sum(Kind::Float);
            let error = Tensor::f_run_backward(&[sum], &[a], false, false).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn a_second_backward_pass_is_an_error() {
        let (a, b) = (leaf(&[1.0]), leaf(&[3.0]));
        let sum = both(&a, &b)[0].sum(Kind::Float);
        Tensor::f_run_backward(&[&sum], &[&a], true, false).unwrap();
        let error = Tensor::f_run_backward(&[&sum], &[&a], false, false).unwrap_err();
        assert!(error.to_string().contains("a second time"), "{error}");
    }
}
