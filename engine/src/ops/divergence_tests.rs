use tch::Device;

use super::*;
use crate::ops::chunked::summed;

const BETAS: [f64; 4] = [0.0, 1.0, 0.5, 0.1];

fn draw(sizes: &[i64]) -> Tensor {
    Tensor::randn(sizes, (Kind::BFloat16, Device::Cpu)).to_kind(Kind::Double)
}

/// What a teacher with these logits would have had stored.
fn stored(logits: &Tensor, known: i64, temperature: f64) -> (Tensor, Tensor) {
    let all = log_probs(logits, temperature).unwrap();
    let (_, ids) = all.topk(known, 1, true, true);
    let log_probs = with_the_rest(&all, &ids).unwrap();
    (ids, log_probs)
}

/// The length of the difference over that of `exact`.
fn apart(found: &Tensor, exact: &Tensor) -> f64 {
    assert_eq!(found.size(), exact.size());
    let length = |x: Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
    let exact = exact.to_kind(Kind::Double);
    // What is next to nothing is a difference of larger numbers.
    let norm = length(exact.shallow_clone()).max(1.0);
    length(found.to_kind(Kind::Double) - exact) / norm
}

#[derive(Clone, Copy)]
struct Case<'a> {
    student: &'a [Tensor; 2],
    teacher: &'a [Tensor; 2],
    known: Option<i64>,
    weights: Option<&'a Tensor>,
    how: Divergence,
}

/// The loss, and the gradients of the student's hidden states and projection, some rows at a
/// time.
fn in_chunks(case: Case<'_>, kind: Kind, plainly: bool) -> [Tensor; 3] {
    let leaf = |x: &Tensor| x.detach().to_kind(kind).set_requires_grad(true);
    let [hidden, output] = case.student.each_ref().map(leaf);
    let [theirs, their_output] = case.teacher.each_ref().map(|x| x.to_kind(kind));
    let weights =
        case.weights.map(|x| if kind == Kind::Double { x.to_kind(kind) } else { x.copy() });
    let loss = summed(&hidden, &[&output], 100, |leaf, start| {
        let count = leaf.size()[0];
        let logits = theirs.narrow(0, start, count).linear(&their_output, None::<Tensor>);
        let weights = weights.as_ref().map(|x| x.narrow(0, start, count));
        let topk = case.known.map(|known| stored(&logits, known, case.how.temperature));
        let teacher = match &topk {
            Some((ids, log_probs)) => Teacher::TopK { ids, log_probs },
            None => Teacher::Logits(&logits),
        };
        let of = if plainly { plain } else { sum };
        of(&leaf.linear(&output, None::<Tensor>), teacher, weights.as_ref(), case.how)
    });
    let loss = loss.unwrap();
    (&loss * 3.0).backward();
    [loss.detach(), hidden.grad() / 3.0, output.grad() / 3.0]
}

#[test]
fn losses_and_gradients_are_those_of_the_graph() {
    tch::manual_seed(5);
    for (rows, vocabulary, known, temperature, weighted) in [
        (1, 7, None, 1.0, false),
        (1, 2, Some(1), 1.0, false),
        (257, 1000, None, 2.0, true),
        (257, 1000, Some(32), 2.0, true),
        (100, 33, None, 0.7, false),
        (101, 33, Some(32), 0.7, true),
        (0, 5, None, 1.0, true),
        (0, 5, Some(2), 1.0, false),
    ] {
        // Teachers have widths of their own.
        let student = [draw(&[rows, 24]), draw(&[vocabulary, 24]) * 0.5];
        let teacher = [draw(&[rows, 10]), draw(&[vocabulary, 10])];
        let weights = Tensor::rand([rows], (Kind::Float, Device::Cpu));
        for beta in BETAS {
            let how = Divergence { beta, temperature };
            let weights = weighted.then_some(&weights);
            let case = Case { student: &student, teacher: &teacher, known, weights, how };
            let exact = in_chunks(case, Kind::Double, true);
            for (kind, bar) in [(Kind::Double, 1e-6), (Kind::Float, 3e-6), (Kind::BFloat16, 8e-3)] {
                let (found, theirs) = (in_chunks(case, kind, false), in_chunks(case, kind, true));
                for (place, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    let (ours, graph) = (apart(found, exact), apart(&theirs[place], exact));
                    assert!(
                        ours <= bar + 1.1 * graph,
                        "{rows}×{vocabulary} {known:?} β {beta} {kind:?} {place}: {ours:e} {graph:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn two_tokens_by_hand() {
    let log = |probabilities: [f64; 2]| Tensor::from_slice(&probabilities).log().view([1, 2]);
    let (student, teacher) = (log([0.25, 0.75]), log([0.5, 0.5]));
    let of = |beta| {
        let how = Divergence { beta, temperature: 1.0 };
        sum(&student, Teacher::Logits(&teacher), None, how).unwrap().double_value(&[])
    };
    let (forward, reverse) =
        (0.5 * (4.0_f64 / 3.0).ln(), 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln());
    assert!((of(0.0) - forward).abs() < 1e-12 && (of(1.0) - reverse).abs() < 1e-12);
    let kl = |p: f64, m: f64| p * (p / m).ln();
    let between = 0.2 * (kl(0.5, 0.3) + kl(0.5, 0.7)) + 0.8 * (kl(0.25, 0.3) + kl(0.75, 0.7));
    assert!((of(0.2) - between).abs() < 1e-12);
}

#[test]
fn nothing_lies_between_a_teacher_and_itself_and_buckets_never_add_to_it() {
    tch::manual_seed(6);
    let [student, teacher] = [(); 2].map(|()| draw(&[40, 50]));
    for beta in BETAS {
        let how = Divergence { beta, temperature: 1.5 };
        let of = |student: &Tensor, teacher: Teacher<'_>| {
            let leaf = student.copy().set_requires_grad(true);
            let loss = sum(&leaf, teacher, None, how).unwrap();
            loss.backward();
            let most = leaf.grad().abs().max().double_value(&[]);
            (loss.double_value(&[]), most)
        };
        let mut before = 0.0;
        for known in [1, 8, 32, 49] {
            let (ids, log_probs) = stored(&teacher, known, how.temperature);
            let topk = Teacher::TopK { ids: &ids, log_probs: &log_probs };
            let (itself, gradient) = of(&teacher, topk);
            assert!(itself.abs() < 1e-6 && gradient < 1e-6, "{beta} {known}: {itself} {gradient}");
            let (loss, _) = of(&student, topk);
            assert!(loss > before, "{beta} {known}: {loss} after {before}");
            before = loss;
        }
        let (whole, _) = of(&student, Teacher::Logits(&teacher));
        // 49 of 50 tokens leave one alone in its bucket.
        assert!((whole - before).abs() < 1e-6 * whole, "{beta}: {whole} {before}");
        let (itself, gradient) = of(&teacher, Teacher::Logits(&teacher));
        assert!(itself.abs() < 1e-6 && gradient < 1e-6, "{beta}: {itself} {gradient}");
    }
}

#[test]
fn sure_students_and_teachers_stay_numbers_and_nan_stays_nan() {
    let sure = |token: i64, by: f64| {
        let mut logits = Tensor::zeros([1, 6], (Kind::Float, Device::Cpu));
        let _ = logits.get(0).narrow(0, token, 1).fill_(by);
        let _ = logits.requires_grad_(true);
        logits
    };
    for beta in BETAS {
        let how = Divergence { beta, temperature: 1.0 };
        for (student, teacher) in [(sure(0, 90.0), sure(0, 90.0)), (sure(0, 90.0), sure(3, 90.0))] {
            let teacher = teacher.detach();
            let (ids, log_probs) = stored(&teacher, 2, 1.0);
            let topk = Teacher::TopK { ids: &ids, log_probs: &log_probs };
            for teacher in [Teacher::Logits(&teacher), topk] {
                let mut student = student.detach().set_requires_grad(true);
                let loss = sum(&student, teacher, None, how).unwrap();
                loss.backward();
                let gradient = student.grad().abs().max().double_value(&[]);
                assert!(loss.double_value(&[]).is_finite() && gradient.is_finite(), "{beta}");
                student.zero_grad();
            }
        }
        let loss = sum(&sure(0, f64::NAN), Teacher::Logits(&sure(0, 1.0).detach()), None, how);
        assert!(loss.unwrap().double_value(&[]).is_nan());
    }
}
