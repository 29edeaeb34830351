//! Stand-ins for kernels that are on their way.

use kernels::Activation;

/// y[m, n] = x[m, k] w[n, k]^T + bias[n]
pub(crate) fn linear_forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], [m, k, n]: [usize; 3]) {
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0.0;
            for p in 0..k {
                sum += x[i * k + p] * w[j * k + p];
            }
            y[i * n + j] = sum + bias.map_or(0.0, |b| b[j]);
        }
    }
}

pub(crate) fn linear_backward_data(dy: &[f32], w: &[f32], dx: &mut [f32], [m, k, n]: [usize; 3]) {
    dx.fill(0.0);
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                dx[i * k + p] += dy[i * n + j] * w[j * k + p];
            }
        }
    }
}

pub(crate) fn linear_backward_weights(
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
    [m, k, n]: [usize; 3],
) {
    dw.fill(0.0);
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                dw[j * k + p] += dy[i * n + j] * x[i * k + p];
            }
        }
    }
    if let Some(db) = db {
        db.fill(0.0);
        for i in 0..m {
            for j in 0..n {
                db[j] += dy[i * n + j];
            }
        }
    }
}

pub(crate) fn activation_forward(activation: Activation, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = match activation {
            Activation::Relu => {
                if x > 0.0 {
                    x
                } else {
                    0.0
                }
            }
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
            _ => x,
        };
    }
}

pub(crate) fn activation_backward(activation: Activation, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
        *dx = match activation {
            Activation::Relu => {
                if y > 0.0 {
                    dy
                } else {
                    0.0
                }
            }
            Activation::Sigmoid => dy * y * (1.0 - y),
            Activation::Tanh => dy * (1.0 - y * y),
            _ => dy,
        };
    }
}

/// y and the index (into x) of each maximum.
pub(crate) fn max_pool_forward(
    x: &[f32],
    y: &mut [f32],
    at: &mut [u32],
    planes: usize,
    [h, w]: [usize; 2],
    [oh, ow]: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) {
    for p in 0..planes {
        for i in 0..oh {
            for j in 0..ow {
                let (mut best, mut best_at) = (f32::NEG_INFINITY, 0);
                for a in 0..kernel[0] {
                    for b in 0..kernel[1] {
                        let (ih, iw) = (i * stride[0] + a, j * stride[1] + b);
                        if ih < padding[0] || iw < padding[1] || ih - padding[0] >= h || iw - padding[1] >= w {
                            continue;
                        }
                        let from = (p * h + ih - padding[0]) * w + iw - padding[1];
                        if x[from] > best || x[from].is_nan() {
                            (best, best_at) = (x[from], from);
                        }
                    }
                }
                y[(p * oh + i) * ow + j] = best;
                at[(p * oh + i) * ow + j] = best_at as u32;
            }
        }
    }
}

pub(crate) fn max_pool_backward(dy: &[f32], at: &[u32], dx: &mut [f32]) {
    dx.fill(0.0);
    for (&dy, &at) in dy.iter().zip(at) {
        dx[at as usize] += dy;
    }
}

/// The mean loss; `probabilities` become the gradient.
pub(crate) fn softmax_cross_entropy(z: &[f32], labels: &[usize], classes: usize, dz: &mut [f32]) -> f32 {
    let mut loss = 0.0f64;
    let n = labels.len() as f32;
    for ((z, dz), &label) in z.chunks(classes).zip(dz.chunks_mut(classes)).zip(labels) {
        let max = z.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f32 = z.iter().map(|z| (z - max).exp()).sum();
        loss += (sum.ln() + max - z[label]) as f64;
        for (c, (dz, z)) in dz.iter_mut().zip(z).enumerate() {
            *dz = ((z - max).exp() / sum - if c == label { 1.0 } else { 0.0 }) / n;
        }
    }
    (loss / n as f64) as f32
}
