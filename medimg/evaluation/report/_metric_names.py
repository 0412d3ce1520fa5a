"""Names of metrics to display."""

__all__ = ["describe_metric"]

_DESCRIPTIONS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "recall": "Recall (sensitivity)",
    "recall_macro": "Recall (macro average)",
    "specificity_macro": "Specificity (macro average)",
    "precision": "Precision",
    "precision_macro": "Precision (macro average)",
    "f1": "F1",
    "f1_macro": "F1 (macro average)",
    "auprc": "Average precision (AUPRC)",
    "auroc_weighted": "AUROC (weighted by class size)",
    "auprc_weighted": "Average precision (weighted by class size)",
    "precision_weighted": "Precision (weighted by class size)",
    "f1_weighted": "F1 (weighted by class size)",
    "recall_micro": "Recall (micro average)",
    "precision_micro": "Precision (micro average)",
    "f1_micro": "F1 (micro average)",
    "mcc": "Matthews correlation coefficient",
    "kappa": "Cohen’s kappa",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "ece_macro": "Expected calibration error (macro average)",
}


def describe_metric(name: str) -> str:
    """
    Give the name of a metric to display, from its key in ``Report.metrics``.

    >>> describe_metric("recall_macro"), describe_metric("f1[viral]")
    ('Recall (macro average)', 'F1: viral')
    """
    metric, bracket, label = name.partition("[")
    description = _DESCRIPTIONS[metric]
    return f"{description}: {label.removesuffix(']')}" if bracket else description
