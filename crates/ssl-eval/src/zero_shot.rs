//! Classification by texts that describe the classes (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>, section
//! 3.1).

use crate::accuracy::best_class;
use crate::{Error, Features, Result, accuracy};

/// The share of `images` whose nearest class by cosine is their label. A class stands where the mean of its normalised
/// texts points: an ensemble of prompts. Of equally near classes the lower one is nearest.
///
/// # Shapes
/// `texts`: `(M, D)`, labelled with the class that each describes; `images`: `(N, D)`.
///
/// # Errors
/// If the widths differ, a label is not below `num_classes`, or a class has no text.
///
/// # Example
/// ```
/// use ssl_eval::{Features, zero_shot_accuracy};
///
/// let texts = Features::new(vec![2.0, 0.0, 0.0, 1.0], 2, vec![0, 1])?;
/// let images = Features::new(vec![3.0, 1.0, -1.0, 0.5, 0.1, 9.0], 2, vec![0, 1, 0])?;
/// assert!((zero_shot_accuracy(&texts, &images, 2)? - 2.0 / 3.0).abs() < 1e-12);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn zero_shot_accuracy(texts: &Features, images: &Features, num_classes: usize) -> Result<f64> {
    images.check_dim(texts.dim())?;
    texts.check_labels(num_classes)?;
    images.check_labels(num_classes)?;
    let mut classes = vec![vec![0.0; texts.dim()]; num_classes];
    let mut counts = vec![0usize; num_classes];
    for (row, &label) in texts.labels().iter().enumerate() {
        let (text, class) = (texts.row(row), label as usize);
        let norm = norm(text.iter().map(|x| f64::from(*x)));
        classes[class].iter_mut().zip(text).for_each(|(sum, x)| *sum += f64::from(*x) / norm);
        counts[class] += 1;
    }
    if let Some(class) = counts.iter().position(|count| *count == 0) {
        return Err(Error::Config {
            field: "the number of texts of a class",
            value: format!("0 for class {class}"),
            allowed: "at least 1",
        });
    }
    for class in &mut classes {
        let norm = norm(class.iter().copied());
        class.iter_mut().for_each(|x| *x /= norm);
    }
    let predict = |row: usize| {
        let cosine =
            |class: &Vec<f64>| class.iter().zip(images.row(row)).map(|(a, b)| a * f64::from(*b)).sum();
        best_class(&classes.iter().map(cosine).collect::<Vec<f64>>())
    };
    let predictions: Vec<u32> = (0..images.rows()).map(predict).collect();
    accuracy(&predictions, images.labels())
}

/// The length of a vector, or 1 if that is 0, so that nothing is divided by it.
fn norm(values: impl Iterator<Item = f64>) -> f64 {
    let norm = values.map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 { norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(rows: &[[f32; 2]], labels: &[u32]) -> Features {
        Features::new(rows.concat(), 2, labels.to_vec()).unwrap()
    }

    #[test]
    fn a_class_is_the_direction_of_its_texts_whatever_their_length() {
        // Directions 1,0 and 0,1 of very different length: the class points along the diagonal.
        let texts = features(&[[100.0, 0.0], [0.0, 0.1], [1.0, -0.3]], &[0, 0, 1]);
        let images = features(&[[0.2, 0.3], [5.0, 1.0], [9.0, -9.0]], &[0, 1, 1]);
        assert_eq!(zero_shot_accuracy(&texts, &images, 2).unwrap(), 1.0);
        let single = features(&[[100.0, 0.0], [1.0, -0.3]], &[0, 1]);
        assert!(zero_shot_accuracy(&single, &images, 2).unwrap() < 1.0);
    }

    #[test]
    fn the_length_of_images_does_not_matter_and_ties_go_to_the_lower_class() {
        let texts = features(&[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], &[0, 1, 2]);
        let images = features(&[[1e-6, 0.0], [1e6, 0.0]], &[0, 0]);
        assert_eq!(zero_shot_accuracy(&texts, &images, 3).unwrap(), 1.0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (texts, images) = (features(&[[1.0, 0.0]], &[0]), features(&[[1.0, 0.0]], &[1]));
        let error = |classes| zero_shot_accuracy(&texts, &images, classes).unwrap_err().to_string();
        assert!(error(1).contains("label of row 0 is 1"));
        assert!(error(2).contains("0 for class 1"));
        let wide = Features::new(vec![0.0; 3], 3, vec![0]).unwrap();
        assert!(zero_shot_accuracy(&texts, &wide, 2).is_err());
    }
}
