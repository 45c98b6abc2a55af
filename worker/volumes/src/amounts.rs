//! Quantities as the node needs them: whole units and thousandths, rounded up as Kubernetes rounds.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths of the unit, rounded up; `None` if the text is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    proto_api::quantity::Quantity::parse(&quantity.0).ok().map(|q| q.milli_value())
}

/// Whole units, rounded up; `None` if the text is no quantity.
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
