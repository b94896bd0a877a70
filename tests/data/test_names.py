import fedveil.data


def test_the_public_names():
    assert sorted(fedveil.data.__all__) == [
        "ArrayImages",
        "CheckReport",
        "Cohort",
        "Dataset",
        "FeatureCache",
        "ImageStack",
        "MEDMNIST",
        "Options",
        "PatientImages",
        "Problem",
        "Scheme",
        "TEST",
        "TRAIN",
        "Unlabelled",
        "VALIDATION",
        "cache_folder",
        "check",
        "fetch",
        "held_out_patients",
        "hospitals",
        "in_memory",
        "is_path",
        "load",
        "load_usable",
        "named_hospitals",
        "read_unlabelled",
        "write_split",
    ]
    assert all(hasattr(fedveil.data, name) for name in fedveil.data.__all__)


def test_which_sources_are_paths():
    assert [
        fedveil.data.is_path(source) for source in ("phantom", "phantom:5", "medmnist:pathmnist", "none")
    ] == [False] * 4
    assert [fedveil.data.is_path(source) for source in ("set.csv", "folder/", "phantom.npz")] == [True] * 3
