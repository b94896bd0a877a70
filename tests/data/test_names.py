import fedveil.data


def test_the_public_names():
    assert sorted(fedveil.data.__all__) == [
        "ArrayImages",
        "CheckReport",
        "Cohort",
        "Dataset",
        "Embeddings",
        "FeatureCache",
        "ImageStack",
        "MEDMNIST",
        "MEMORY",
        "Options",
        "PatientImages",
        "Problem",
        "Reading",
        "Scheme",
        "Settings",
        "TEST",
        "TRAIN",
        "Unlabelled",
        "VALIDATION",
        "Window",
        "cache_folder",
        "check",
        "check_window",
        "fetch",
        "held_out_patients",
        "hospitals",
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
        fedveil.data.is_path(source)
        for source in ("phantom", "phantom:5", "medmnist:pathmnist", "none", "memory")
    ] == [False] * 5
    assert [fedveil.data.is_path(source) for source in ("set.csv", "folder/", "phantom.npz")] == [True] * 3
