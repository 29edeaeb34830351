//! Performance studies: what `kernelbench` and the Criterion suites share.
//!
//! ```text
//! main ──► overview | conv | attention | model | gemm | memory | parallel
//!             │
//!             ├── shapes    layers by name, from CSV files
//!             ├── table     the form of such a file
//!             ├── random_layers   layers that nobody named
//!             ├── heads, random_heads   attentions by name, and those that nobody named
//!             ├── head_problem    an attention with data and a plan: checked, then timed
//!             ├── machine   the CPU's name, its FMA peak, its read bandwidth, pools of threads
//!             ├── sample    the definition of a convolution, one output at a time, in f64
//!             ├── problem   a layer with data and plans: checked, then timed
//!             ├── regret    what the choice of an algorithm costs
//!             ├── timing    the best and the median of many calls
//!             └── report    rows as text, JSON or CSV
//! ```

pub mod attention;
pub mod conv;
pub mod failure;
pub mod gemm;
pub mod head_problem;
pub mod heads;
pub mod machine;
pub mod memory;
pub mod model;
pub mod options;
pub mod overview;
pub mod parallel;
pub mod problem;
pub mod random_heads;
pub mod random_layers;
pub mod regret;
pub mod report;
pub mod sample;
pub mod shapes;
mod split_mix;
mod table;
pub mod timing;
