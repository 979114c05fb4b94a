//! Progress bars, and plain lines where there is no terminal.
