//! Converts quantities to whole units and thousandths, rounded up as in Kubernetes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Converts a quantity to thousandths of its unit, rounded up; `None` if it does not parse.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    proto_api::quantity::Quantity::parse(&quantity.0).ok().map(|q| q.milli_value())
}

/// Converts a quantity to whole units, rounded up; `None` if it does not parse.
pub fn whole(quantity: &Quantity) -> Option<i64> {
    proto_api::quantity::Quantity::parse(&quantity.0).ok().map(|q| q.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up_to_the_unit_asked_for() {
        let q = |text: &str| Quantity(text.to_owned());
        assert_eq!(milli(&q("250m")), Some(250));
        assert_eq!(milli(&q("1.5")), Some(1500));
        assert_eq!(whole(&q("250m")), Some(1));
        assert_eq!(whole(&q("64Mi")), Some(64 << 20));
        assert_eq!(milli(&q("100u")), Some(1));
        assert_eq!(whole(&q("1Qi")), None);
    }
}
