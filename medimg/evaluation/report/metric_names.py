"""Names of metrics for people."""

__all__ = ["describe_metric"]

_DESCRIPTIONS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "recall": "Recall (sensitivity)",
    "recall_macro": "Recall, mean of the classes",
    "specificity_macro": "Specificity, mean of the classes",
    "precision": "Precision",
    "precision_macro": "Precision, mean of the classes",
    "f1": "F1",
    "f1_macro": "F1, mean of the classes",
    "auprc": "Average precision (AUPRC)",
    "auroc_weighted": "AUROC, weighted by class size",
    "auprc_weighted": "Average precision, weighted by class size",
    "precision_weighted": "Precision, weighted by class size",
    "f1_weighted": "F1, weighted by class size",
    "recall_micro": "Recall, all labels pooled",
    "precision_micro": "Precision, all labels pooled",
    "f1_micro": "F1, all labels pooled",
    "mcc": "Matthews correlation",
    "kappa": "Cohen’s kappa",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "ece_macro": "Expected calibration error, mean of the classes",
}


def describe_metric(name: str) -> str:
    """
    Put the name of a metric into words.

    Parameters
    ----------
    name : str
        A key of ``Report.metrics``.

    Returns
    -------
    str
        For people to read.

    Examples
    --------
    >>> describe_metric("recall_macro"), describe_metric("f1[viral]")
    ('Recall, mean of the classes', 'F1: viral')
    """
    kind, bracket, of_class = name.partition("[")
    described = _DESCRIPTIONS[kind]
    return f"{described}: {of_class.removesuffix(']')}" if bracket else described
