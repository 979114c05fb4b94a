//! Reading rows out of Parquet.
