//! Stands in for `kernels::linear`, with its signatures, until that is there.

use kernels::{Error, Parallelism};

pub(crate) struct Linear {
    in_features: usize,
    out_features: usize,
}

#[derive(Default)]
pub(crate) struct Gradients<'a> {
    pub dx: Option<&'a mut [f32]>,
    pub dw: Option<&'a mut [f32]>,
    pub db: Option<&'a mut [f32]>,
    pub accumulate_dx: bool,
    pub accumulate_parameters: bool,
}

impl Linear {
    pub(crate) const fn new(in_features: usize, out_features: usize) -> Self {
        Self { in_features, out_features }
    }

    pub(crate) fn workspace_len(&self, _batch: usize, _slots: usize) -> Result<usize, Error> {
        Ok(0)
    }

    pub(crate) fn forward(
        &self,
        batch: usize,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        _workspace: &mut [f32],
        _parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let (k, n) = (self.in_features, self.out_features);
        for i in 0..batch {
            for j in 0..n {
                let mut sum = 0.0;
                for p in 0..k {
                    sum += x[i * k + p] * w[j * k + p];
                }
                y[i * n + j] = sum + bias.map_or(0.0, |bias| bias[j]);
            }
        }
        Ok(())
    }

    pub(crate) fn backward(
        &self,
        batch: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        gradients: Gradients<'_>,
        _workspace: &mut [f32],
        _parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let (k, n) = (self.in_features, self.out_features);
        let Gradients { dx, dw, db, accumulate_dx, accumulate_parameters } = gradients;
        if let Some(dx) = dx {
            if !accumulate_dx {
                dx.fill(0.0);
            }
            for i in 0..batch {
                for j in 0..n {
                    for p in 0..k {
                        dx[i * k + p] += dy[i * n + j] * w[j * k + p];
                    }
                }
            }
        }
        if let Some(dw) = dw {
            if !accumulate_parameters {
                dw.fill(0.0);
            }
            for i in 0..batch {
                for j in 0..n {
                    for p in 0..k {
                        dw[j * k + p] += dy[i * n + j] * x[i * k + p];
                    }
                }
            }
        }
        if let Some(db) = db {
            if !accumulate_parameters {
                db.fill(0.0);
            }
            for i in 0..batch {
                for j in 0..n {
                    db[j] += dy[i * n + j];
                }
            }
        }
        Ok(())
    }
}
