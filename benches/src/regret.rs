//! What the choice of an algorithm costs: how much longer the chosen one takes than the best that the accuracy allows,
//! both timed under their own names, in the same minute.
//!
//! ```text
//! forward     seconds[chosen] / min over allowed of seconds - 1
//! backward    the same for the gradient of the input and for that of the weights, which are chosen apart, and for
//!             their sums
//! ```

use kernels::conv::Algorithm;

use crate::failure::Failure;
use crate::problem::{Gradient, Outcome};
use crate::report::Regret;
use crate::shapes::Layer;

/// What an algorithm took for a layer, asked for by its name.
#[derive(Clone, Debug)]
pub struct Timed {
    algorithm: Algorithm,
    /// What ran, which is somebody's choice: the algorithm of the call, or those of the two gradients.
    ran: [Algorithm; 2],
    seconds: f64,
    /// The gradients apart.
    gradients: Option<[f64; 2]>,
}

impl Timed {
    /// From what a study of the algorithm found.
    pub fn new(algorithm: Algorithm, outcome: &Outcome) -> Self {
        let seconds = outcome.timing.seconds_min;
        Self { algorithm, ran: outcome.ran, seconds, gradients: outcome.gradients }
    }
}

/// What a choice costs, and in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The cost.
    pub regret: Regret,
    /// Which layer, what was chosen, and what would have been the best.
    pub text: String,
}

/// The seconds of what was chosen and of the best, and the name of the best.
struct Pair {
    chosen: f64,
    best: f64,
    name: Algorithm,
}

impl Pair {
    /// `None` where what was chosen is not among the times.
    fn new(chosen: Algorithm, times: &[(Algorithm, f64)], is_allowed: impl Fn(Algorithm) -> bool) -> Option<Self> {
        let own = times.iter().find(|time| time.0 == chosen)?.1;
        let allowed = times.iter().filter(|time| time.0 == chosen || is_allowed(time.0));
        let &(name, best) = allowed.min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some(Self { chosen: own, best, name })
    }

    fn regret(&self) -> f64 {
        self.chosen / self.best - 1.0
    }
}

/// What the automatic choice for a layer costs, if it and what it chose were timed.
///
/// # Errors
/// Those of the layer's spec.
pub fn regret(layer: &Layer, times: &[Timed]) -> Result<Option<Choice>, Failure> {
    let spec = &layer.spec;
    let Some(auto) = times.iter().find(|time| time.algorithm == Algorithm::Auto) else { return Ok(None) };
    let named: Vec<&Timed> = times.iter().filter(|time| time.algorithm != Algorithm::Auto).collect();
    if auto.gradients.is_none() {
        let times: Vec<_> = named.iter().map(|time| (time.algorithm, time.seconds)).collect();
        let pair = Pair::new(auto.ran[0], &times, |algorithm| algorithm.is_allowed(spec));
        return Ok(pair.map(|pair| Choice {
            regret: Regret { all: pair.regret(), gradients: None },
            text: format!("{}: {} instead of {}", layer.name, auto.ran[0], pair.name),
        }));
    }
    let output = spec.sizes(layer.shape)?.output;
    let pair = |gradient: Gradient| {
        // Under its own name an algorithm may still leave a gradient to another.
        let of = |time: &&Timed| Some((time.ran[gradient as usize], time.gradients?[gradient as usize]));
        let times: Vec<_> = named.iter().filter_map(of).collect();
        Pair::new(auto.ran[gradient as usize], &times, |algorithm| match gradient {
            Gradient::Data => algorithm.is_allowed_for_data(spec),
            Gradient::Weights => algorithm.is_allowed_for_weights(spec, layer.shape.batch, output),
        })
    };
    Ok(pair(Gradient::Data).zip(pair(Gradient::Weights)).map(|(data, weights)| Choice {
        regret: Regret {
            all: (data.chosen + weights.chosen) / (data.best + weights.best) - 1.0,
            gradients: Some([data.regret(), weights.regret()]),
        },
        text: format!("{}: {}+{} instead of {}+{}", layer.name, auto.ran[0], auto.ran[1], data.name, weights.name),
    }))
}

/// What the choices of a study cost.
pub fn summary(choices: &mut [Choice]) -> String {
    choices.sort_by(|a, b| b.regret.all.total_cmp(&a.regret.all));
    let mean = choices.iter().map(|choice| choice.regret.all).sum::<f64>() / choices.len() as f64;
    let mut text = format!("\nThe choice costs {:.1} % over the best on average; the worst:\n", 100.0 * mean);
    for Choice { regret, text: what } in choices.iter().take(12) {
        text += &format!("  {:5.1} %  {what}\n", 100.0 * regret.all);
    }
    text
}

#[cfg(test)]
mod tests {
    use kernels::conv::{Accuracy, Conv2dSpec, Shape};

    use super::*;

    fn layer(accuracy: Accuracy) -> Layer {
        let mut spec = Conv2dSpec::new(64, 64, [3, 3]);
        spec.accuracy = accuracy;
        Layer { name: "a".into(), spec, shape: Shape::new(1, 30, 30) }
    }

    fn timed(algorithm: Algorithm, ran: [Algorithm; 2], seconds: f64, gradients: Option<[f64; 2]>) -> Timed {
        Timed { algorithm, ran, seconds, gradients }
    }

    #[test]
    fn a_choice_is_measured_by_the_best_that_the_accuracy_allows() {
        use Algorithm::{Auto, Direct, Im2col, Winograd6};
        let times = [
            timed(Auto, [Direct; 2], 9.0, None),
            timed(Direct, [Direct; 2], 3.0, None),
            timed(Im2col, [Im2col; 2], 2.0, None),
            timed(Winograd6, [Winograd6; 2], 1.0, None),
        ];
        let choice = |accuracy| regret(&layer(accuracy), &times).unwrap().unwrap();
        assert_eq!(choice(Accuracy::Direct).regret, Regret { all: 0.5, gradients: None });
        assert_eq!(choice(Accuracy::Direct).text, "a: direct instead of im2col");
        assert_eq!(choice(Accuracy::Fastest).regret.all, 2.0);
        assert_eq!(regret(&layer(Accuracy::Direct), &times[1..]).unwrap(), None);
    }

    #[test]
    fn gradients_are_measured_apart() {
        use Algorithm::{Auto, Direct, Gemm};
        let times = [
            timed(Auto, [Direct, Gemm], 9.0, Some([5.0, 4.0])),
            timed(Direct, [Direct; 2], 9.0, Some([4.0, 3.0])),
            timed(Gemm, [Gemm; 2], 9.0, Some([2.0, 6.0])),
        ];
        let choice = regret(&layer(Accuracy::Direct), &times).unwrap().unwrap();
        assert_eq!(choice.regret, Regret { all: 1.0, gradients: Some([1.0, 1.0]) });
        assert_eq!(choice.text, "a: direct+gemm instead of gemm+direct");
        assert!(summary(&mut [choice]).contains("costs 100.0 % over the best"));
    }
}
