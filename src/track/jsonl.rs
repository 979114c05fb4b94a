//! `metrics.jsonl`.
