use heirloom::base::BaseFolder;
use heirloom::dataset::stream::*;
use heirloom_engine::train::*;
use heirloom_engine::error::EngineError;
struct Null;
impl heirloom::track::Sink for Null {
    fn step(&mut self, m: &heirloom::track::StepMetrics) -> std::io::Result<()> { println!("{} loss {:.4} tok/s {:.0}", m.step, m.loss, m.tokens_per_second); Ok(()) }
    fn validation(&mut self, _: &heirloom::track::ValidationMetrics) -> std::io::Result<()> { Ok(()) }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::path::PathBuf::from(&a[1]);
    let lora = a[2] == "lora";
    let dtype = &a[3];
    let adapter = if lora { serde_json::json!({"lora": {"rank": 16, "alpha": 32.0}}) } else { serde_json::json!("full") };
    let recipe: heirloom::recipe::Recipe = serde_json::from_value(serde_json::json!({
        "heirloom":1,"name":"x","base":{"model":dir,"dtype":dtype,"from_scratch":true},"adapter":adapter,
        "data":{"purpose":["dpv:X"],"train":[],"sequence_length":512},
        "train":{"epochs":1,"tokens_per_step":4096,"optimizer":{"adamw":{"lr":1e-3}},"seed":1}})).unwrap();
    let mut base = BaseFolder::open(&dir, true).unwrap();
    if lora { base = BaseFolder::open(&dir, false).unwrap(); }
    let n: u64 = 8;
    let mut t = Trainer::open(&recipe, &base, n, "/tmp/nockpt".into()).unwrap();
    let mut s: u64 = 12345;
    let mut rnd = move || { s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (s >> 33) as u32 };
    let v = base.config.vocab_size as u32;
    let steps: Vec<Result<Step, EngineError>> = (0..n).map(|_| {
        let mut b = MicroBatch::default();
        while b.tokens.len() < 4000 { let l = 60 + rnd() % 60; b.lengths.push(l); for i in 0..l { b.tokens.push(rnd() % v); b.trained.push(i > l * 6 / 10); } }
        Ok(Step { micro_batches: vec![b], epoch: 0, ends_epoch: false, position: Position::default() })
    }).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    t.run(steps.into_iter(), || Ok(vec![]), &[n], &mut Null, &stop).unwrap();
    let st = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", st.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
