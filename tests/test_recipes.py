"""Datasets as they are published, in small: names, boxes, splits, options; archives, honest and hostile."""

import io
import json
import sqlite3
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from conftest import ROOT
from facelab.config import build
from facelab.data import archives, source
from facelab.data.items import Item
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.recipes import RECIPES
from facelab.data.recipes.ls3d_w import read_landmarks
from facelab.data.recipes.reading import square
from facelab.data.recipes.vggface2 import sideways
from facelab.data.shards import FACE_SCHEMA, split_of
from facelab.data.source import find as find_source
from facelab.errors import UsageError
from facelab.images import BadImage, decode, encode_png, read_image
from facelab.samples.faces import sample_face


def write(place: Path, content: str | bytes = b"an image") -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def find(recipe: str, place: Path, **options) -> list[Item]:
    return list(RECIPES[recipe](**options).find(str(place)))


def by_name(items: list[Item]) -> dict[str, Item]:
    """Each id once; every image is where its item says, or an archive is."""
    named = {item.name: item for item in items}
    assert len(named) == len(items)
    return named


def middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def side(box: tuple[int, int, int, int]) -> int:
    assert box[2] - box[0] == box[3] - box[1]
    return box[2] - box[0]


def require_no_leak(groups: dict[str, set[str]], *splits: str) -> None:
    """Every group is in one split, and each of `splits` has one."""
    assert all(len(found) == 1 for found in groups.values())
    assert set.union(*groups.values()) == set(splits)


def grouped(items: list[Item], group) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(group(item), set()).add(item.split)
    return groups


def test_a_square_is_about_the_middle_of_its_box():
    assert square(10, 20, 40, 20, margin=0) == (10, 10, 50, 50)
    assert square(10, 20, 40, 20) == (5, 5, 55, 55)  # a quarter longer
    assert square(0, 0, 40, 40) == (-5, -5, 45, 45)  # beyond the image: its reader clips it
    assert square(10, 20, 0, 20) is square(10, 20, 20, -1) is None


def test_a_folder_gives_its_images_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b.webp", "c.txt", ".hidden.png"):
        write(tmp_path / "in" / name)
    assert [item.name for item in find("folder", tmp_path / "in")] == ["a/b.webp", "a/z.JPG", "b.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no images"):
        find("folder", tmp_path / "none")
    folder = tmp_path / "odd"
    write(folder / "\\xff.png")
    try:
        write(folder / "\udcff.png")
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    with pytest.raises(UsageError, match="two files have one name"):
        find("folder", folder)


# VGGFace2


def landmarks(yaw: float) -> str:
    """Five points, eyes 40 px apart, of a nose `yaw` eye distances from their middle."""
    return f"80,100,120,100,{100 + 40 * yaw},120,85,140,115,140"


def vggface2(root: Path) -> Path:
    """Thirty identities of five images, turned farther the higher their number, and two of the test part."""
    for part, identities in (("train", range(2, 32)), ("test", (1, 40))):
        boxes, points = ["NAME_ID,X,Y,W,H"], ["NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y"]
        for identity in identities:
            for image in range(5):
                name = f"n{identity:06d}/{image:04d}_01"
                write(root / part / f"{name}.jpg")
                boxes.append(f'"{name}",60,50,80,100')
                points.append(f'"{name}",{landmarks((-1) ** image * image / 5)}')
        write(root / "bb_landmark" / f"loose_bb_{part}.csv", "\n".join(boxes) + "\n")
        write(root / "bb_landmark" / f"loose_landmark_{part}.csv", "\n".join(points) + "\n")
    return root


def test_vggface2_takes_the_faces_that_are_turned_farthest(tmp_path):
    root = vggface2(tmp_path)
    items = find("vggface2", root, per_identity=2)
    named = by_name(items)
    assert len(items) == 2 * 32
    assert {name[-11:] for name in named} == {"0003_01.jpg", "0004_01.jpg"}
    assert all(Path(item.uri).is_file() for item in items)
    item = named["train/n000002/0004_01.jpg"]
    assert item.box == (38, 38, 163, 163)  # 80 x 100 about (100, 100), a quarter longer
    require_no_leak(grouped(items, lambda item: item.name.split("/")[1]), "train", "val", "test")
    assert {item.split for item in items if item.name.startswith("test/")} == {"test"}
    assert {item.split for item in items if item.name.startswith("train/")} == {"train", "val"}


def test_vggface2_does_not_depend_on_the_order_of_its_lines(tmp_path):
    root = vggface2(tmp_path)
    before = find("vggface2", root, per_identity=3)
    for place in (root / "bb_landmark").iterdir():
        header, *rows = place.read_text().splitlines()
        place.write_text("\n".join([header, *reversed(rows)]))
    assert find("vggface2", root, per_identity=3) == before


def test_vggface2_takes_all(tmp_path):
    """With boxes, as the file has them, also of an image that is missing; without the file, what lies there."""
    root = vggface2(tmp_path)
    (root / "train" / "n000002" / "0000_01.jpg").unlink()
    items = find("vggface2", root, per_identity=0)
    assert len(items) == 5 * 32
    assert all(item.box for item in items)
    for place in (root / "bb_landmark").iterdir():
        place.unlink()
    items = find("vggface2", root, per_identity=0)
    assert len(items) == 5 * 32 - 1
    assert not any(item.box for item in items)
    with pytest.raises(UsageError, match=r"loose_landmark_train\.csv.*--vggface2\.per-identity 0"):
        find("vggface2", root)


def test_yaw_is_what_turns_a_head_not_what_tilts_it():
    points = [80, 100, 120, 100, 110, 120]
    assert sideways(points) == pytest.approx(0.25)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert sideways((np.reshape(points, (3, 2)) @ turn.T).ravel().tolist()) == pytest.approx(0.25)
    assert sideways([80, 100, 80, 100, 110, 120]) == float("inf")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"n000002/0001_01",1,2,3', r"loose_bb_train\.csv, line 3: expected NAME_ID,X,Y,W,H"),
        ('"n000002/0001_01",1,2,3,x', "line 3"),
        ('"n000002/0001_01",1,2,3,inf', "line 3"),
        ('"../secret",1,2,3,4', "line 3"),
        ('"elsewhere",1,2,3,4', "expected a name such as"),
    ],
)
def test_vggface2_names_the_malformed_line(tmp_path, line, problem):
    root = vggface2(tmp_path)
    write(root / "bb_landmark" / "loose_bb_train.csv", f'NAME_ID,X,Y,W,H\n"n000002/0000_01",1,2,3,4\n{line}\n')
    with pytest.raises(UsageError, match=problem):
        find("vggface2", root)


# CelebA


def celeba(root: Path, layout: str = "img_align_celeba", count: int = 60) -> Path:
    """Person i // 3; of ten people, the ninth is in val and the tenth in test. The fourth box has no area."""
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    for name in names:
        write(root / layout / name)
    parts = [{8: 1, 9: 2}.get(i // 3 % 10, 0) for i in range(count)]
    boxes = ["    100   90  200  260" if i != 3 else "0 0 0 0" for i in range(count)]
    points = "165 184 244 176 196 249 194 271 266 260"
    write(root / "list_eval_partition.txt", "".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    write(root / "identity_CelebA.txt", "".join(f"{n} {i // 3}\n" for i, n in enumerate(names)))
    head = f"{count}\nimage_id x_1 y_1 width height\n"
    write(root / "list_bbox_celeba.txt", head + "".join(f"{n} {b}\n" for n, b in zip(names, boxes, strict=True)))
    head = f"{count}\nlefteye_x lefteye_y righteye_x …\n"
    write(root / "list_landmarks_celeba.txt", head + "".join(f"{n} {points}\n" for n in names))
    return root


def person(item: Item) -> str:
    return str((int(item.name[:6]) - 1) // 3)


def test_celeba_aligned(tmp_path):
    items = find("celeba", celeba(tmp_path), count=0)
    assert [item.name for item in items] == [f"{i:06d}.jpg" for i in range(1, 61)]
    assert {item.box for item in items} == {(15, 40, 163, 188)}
    require_no_leak(grouped(items, person), "train", "val", "test")
    assert by_name(items)["000025.jpg"].split == "val"
    assert by_name(items)["000028.jpg"].split == "test"
    assert all(Path(item.uri).is_file() for item in items)


def test_celeba_chooses_by_hash_and_lists_what_is_missing(tmp_path):
    root = celeba(tmp_path)
    some = find("celeba", root, count=20)
    assert len(some) == 20
    assert some == sorted(some, key=lambda item: item.name)
    assert {item.name for item in some} < {item.name for item in find("celeba", root, count=30)}
    assert [item.name for item in some] != [f"{i:06d}.jpg" for i in range(1, 21)]
    Path(some[0].uri).unlink()
    assert find("celeba", root, count=20) == some


def test_celeba_in_the_wild(tmp_path):
    root = celeba(tmp_path, "Img/img_celeba")
    for place in list(root.glob("list_*.txt")):
        place.rename(write(root / "Anno" / place.name))
    named = by_name(find("celeba", root))
    assert named["000001.jpg"].box == (70, 90, 330, 350)  # 200 x 260 about (200, 220)
    by_points = named["000004.jpg"].box
    assert side(by_points) == round(3.5 * 101)  # from 165 to 266
    assert middle(by_points) == pytest.approx((215.5, 223.5), abs=1)
    with pytest.raises(UsageError, match="no img_align_celeba here"):
        find("celeba", root, layout="aligned")
    (root / "Anno" / "list_bbox_celeba.txt").unlink()
    with pytest.raises(UsageError, match="list_bbox_celeba"):
        find("celeba", root)


def test_celeba_prefers_aligned_images(tmp_path):
    root = celeba(celeba(tmp_path), "img_celeba")
    assert "img_align_celeba" in find("celeba", root)[0].uri
    assert "img_celeba" in find("celeba", root, layout="wild")[0].uri


def test_no_person_of_celeba_is_in_two_parts_whatever_the_files_say(tmp_path):
    root = celeba(tmp_path)
    partition = root / "list_eval_partition.txt"
    write(partition, partition.read_text().replace("000002.jpg 0", "000002.jpg 2"))
    require_no_leak(grouped(find("celeba", root), person), "train", "val", "test")
    partition.unlink()
    by_identity = find("celeba", root)
    require_no_leak(grouped(by_identity, person), "train", "val")
    (root / "identity_CelebA.txt").unlink()
    assert {item.split for item in find("celeba", root)} == {""}  # the rule decides, by image


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("list_eval_partition.txt", "000001.jpg 0\n000002.jpg\n", r"list_eval_partition\.txt, line 2"),
        ("list_eval_partition.txt", "000001.jpg 3\n", "expected 0, 1 or 2"),
        ("list_eval_partition.txt", "", "no images"),
        ("list_bbox_celeba.txt", "1\nheader\n000001.jpg 1 2 3\n", r"list_bbox_celeba\.txt, line 3: expected 000001"),
        ("list_landmarks_celeba.txt", "1\nheader\n000004.jpg 1 2 3\n", r"list_landmarks_celeba\.txt, line 3"),
    ],
)
def test_celeba_names_the_malformed_line(tmp_path, name, content, problem):
    root = celeba(tmp_path, "img_celeba")
    write(root / "img_align_celeba" / "readme.txt")
    write(root / name, content)
    if not content:
        (root / "identity_CelebA.txt").unlink()
    with pytest.raises(UsageError, match=problem):
        find("celeba", root, layout="aligned" if not content else "wild")


# AFLW


def aflw(root: Path, changes: tuple[str, ...] = ()) -> Path:
    """Forty images of two faces: one with a rectangle, one with landmarks alone."""
    (root / "data").mkdir(parents=True)
    connection = sqlite3.connect(root / "data" / "aflw.sqlite")
    for table in (
        "Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT)",
        "FaceImages (image_id INTEGER PRIMARY KEY, db_id TEXT, file_id TEXT, filepath TEXT, bw, width, height)",
        "FaceRect (face_id INTEGER, x INTEGER, y INTEGER, w INTEGER, h INTEGER, annot_type_id INTEGER)",
        "FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL)",
    ):
        connection.execute(f"CREATE TABLE {table}")
    for i in range(40):
        file, path = f"image{i:05d}.jpg", f"{(0, 2, 3)[i % 3]}/image{i:05d}.jpg"
        write(root / "data" / "flickr" / path)
        connection.execute("INSERT INTO FaceImages VALUES (?, 'flickr', ?, ?, 0, 500, 400)", (i, file, path))
        connection.executemany("INSERT INTO Faces VALUES (?, ?, 'flickr')", [(100 + i, file), (200 + i, file)])
        connection.executemany(
            "INSERT INTO FaceRect VALUES (?, ?, 50, 40, 40, ?)", [(100 + i, 99, 2), (100 + i, 60, 1), (200 + i, 0, 1)]
        )
        connection.execute("UPDATE FaceRect SET w = 0 WHERE face_id >= 200")
        for feature in range(3):
            connection.execute("INSERT INTO FeatureCoords VALUES (?, ?, ?, 70)", (200 + i, feature, 80 + 20 * feature))
        connection.execute("INSERT INTO FeatureCoords VALUES (?, 9, 100, 90)", (200 + i,))
    for change in changes:
        connection.execute(change)
    connection.commit()
    connection.close()
    return root


def test_aflw_takes_every_face_and_keeps_an_image_on_one_side(tmp_path):
    items = find("aflw", aflw(tmp_path))
    named = by_name(items)
    assert len(items) == 80
    assert named["flickr/0/image00000.jpg#100"].box == (55, 45, 105, 95)  # of two rectangles, the first kind
    assert named["flickr/0/image00000.jpg#200"].box == (75, 55, 125, 105)  # what holds the landmarks: 40 x 20
    assert all(Path(item.uri).is_file() for item in items)
    require_no_leak(grouped(items, lambda item: item.name.split("#")[0]), "train", "val")


def test_aflw_leaves_out_a_face_that_is_nowhere(tmp_path):
    root = aflw(tmp_path, ("DELETE FROM FeatureCoords WHERE face_id = 200",))
    assert "flickr/0/image00000.jpg#200" not in by_name(find("aflw", root))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DROP TABLE FaceRect", "not AFLW's database"),
        ("UPDATE FaceRect SET w = 'wide'", "not AFLW's database"),
        ("UPDATE FaceImages SET filepath = '../../secret.jpg'", "expected the path of an image"),
        ("DELETE FROM Faces", "no images"),
    ],
)
def test_aflw_refuses_another_database(tmp_path, change, problem):
    with pytest.raises(UsageError, match=problem):
        find("aflw", aflw(tmp_path, (change,)))


def test_aflw_is_only_read(tmp_path):
    root = aflw(tmp_path)
    before = (root / "data" / "aflw.sqlite").read_bytes()
    find("aflw", root)
    assert (root / "data" / "aflw.sqlite").read_bytes() == before
    assert sorted(place.name for place in (root / "data").iterdir()) == ["aflw.sqlite", "flickr"]
    (root / "data" / "aflw.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="damaged"):
        find("aflw", root)
    with pytest.raises(UsageError, match=r"data/aflw\.sqlite"):
        find("aflw", tmp_path / "data" / "flickr")


# LS3D-W


def face_points() -> np.ndarray:
    """(68, 2): what holds them is 80 px wide and 100 high, from (100, 50)."""
    points = np.random.default_rng(0).uniform((100, 50), (180, 150), (68, 2))
    points[:4] = (100, 50), (180, 50), (100, 150), (180, 150)
    return points


def pts(points: np.ndarray) -> str:
    return "version: 1\nn_points: 68\n{\n" + "".join(f"{x} {y}\n" for x, y in points) + "}\n"


def ls3d_w(root: Path) -> Path:
    for i in range(30):
        write(root / "Menpo-3D" / f"menpo_{i}.jpg")
        write(root / "Menpo-3D" / f"menpo_{i}.pts", pts(face_points()))
    for video in range(25):
        for frame in range(1, 8):
            write(root / "300VW-3D" / "CatA" / f"{video:03d}" / f"{frame:04d}.jpg")
            np.save(root / "300VW-3D" / "CatA" / f"{video:03d}" / f"{frame:04d}.npy", face_points())
    place = write(root / "AFLW2000-3D-Reannotated" / "image00002.jpg")
    scipy.io.savemat(place.with_suffix(".mat"), {"pt3d_68": np.vstack([face_points().T, np.zeros((1, 68))])})
    write(root / "new_dataset" / "test_1.jpg")
    return root


def test_ls3d_w_takes_boxes_from_landmarks_and_some_frames_of_a_video(tmp_path):
    items = find("ls3d_w", ls3d_w(tmp_path), frames=3)
    named = by_name(items)
    assert len(items) == 30 + 25 * 3 + 1
    assert not any("new_dataset" in name for name in named)
    # 100 px and a quarter for the forehead are 125; the square is a quarter longer.
    for name in ("Menpo-3D/menpo_0.jpg", "300VW-3D/CatA/000/0004.jpg", "AFLW2000-3D-Reannotated/image00002.jpg"):
        assert side(named[name].box) == round(1.25 * 125)
        assert middle(named[name].box) == pytest.approx((140, 87.5), abs=1)
    videos = [item for item in items if item.name.startswith("300VW-3D")]
    require_no_leak(grouped(videos, lambda item: item.name.rpartition("/")[0]), "train", "val")


def test_ls3d_w_says_what_to_do_about_landmarks_that_are_not_read(tmp_path):
    root = ls3d_w(tmp_path)
    (root / "Menpo-3D" / "menpo_3.pts").rename(root / "Menpo-3D" / "menpo_3.t7")
    with pytest.raises(UsageError, match=r"menpo_3\.jpg: no menpo_3\.mat or \.pts or \.npy beside it: convert"):
        find("ls3d_w", root)
    assert "Menpo-3D/menpo_3.jpg" not in by_name(find("ls3d_w", root, without_landmarks="skip"))
    assert by_name(find("ls3d_w", root, without_landmarks="centre"))["Menpo-3D/menpo_3.jpg"].box is None
    with pytest.raises(UsageError, match="no images"):
        find("ls3d_w", root, parts=("Menpo",))


def test_landmarks_that_are_none_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.save(tmp_path / "evil.npy", np.array([Evil()]), allow_pickle=True)
    write(tmp_path / "short.pts", pts(face_points()[:5]))
    write(tmp_path / "text.mat", "no matrix")
    write(tmp_path / "nan.pts", pts(face_points() * np.nan))
    for place in tmp_path.glob("*.*"):
        with pytest.raises(UsageError, match=place.name):
            read_landmarks(str(place))
    assert not (tmp_path / "ran").exists()


# WIDER FACE


def wider(root: Path, part: str = "train", scenes: int = 60) -> Path:
    rows = []
    for i in range(scenes):
        scene = f"{i % 3}--Event/{i % 3}_Event_{i}.jpg"
        write(root / f"WIDER_{part}" / "images" / scene)
        rows += [scene, "5"]
        rows += ["100 50 16 20 2 0 0 0 0 0 ", "1 1 16 20 2 0 0 1 0 0", "1 1 200 200 0 0 0 0 0 0"]  # one that is invalid
        rows += ["-2 3 8 10 1 0 0 0 1 1", "9 9 20 20 0 0 0 0 2 0"]
    write(root / f"WIDER_{part}" / "images" / "empty.jpg")
    rows += ["empty.jpg", "0", "0 0 0 0 0 0 0 0 0 0"]
    write(root / "wider_face_split" / f"wider_face_{part}_bbx_gt.txt", "\n".join(rows) + "\n")
    return root


def test_wider_face_takes_small_faces_and_keeps_a_scene_on_one_side(tmp_path):
    items = find("wider_face", wider(tmp_path))
    named = by_name(items)
    assert {name.rpartition("#")[2] for name in named} == {"0", "3"}
    assert len(items) == 2 * 60
    assert side(named["WIDER_train/0--Event/0_Event_0.jpg#0"].box) == 25
    assert middle(named["WIDER_train/0--Event/0_Event_0.jpg#0"].box) == pytest.approx((108, 60), abs=1)
    assert all(Path(item.uri).is_file() for item in items)
    require_no_leak(grouped(items, lambda item: item.uri), "train", "val")


def test_wider_face_has_options(tmp_path):
    root = wider(wider(tmp_path), "val")

    def taken(**options) -> set[str]:
        return {item.name.rpartition("#")[2] for item in find("wider_face", root, **options)}

    assert taken(min_side=13) == {"0"}
    assert taken(max_side=250) == {"0", "2", "3"}
    assert taken(blur=(1,)) == {"3"}
    assert taken(occlusion=(0, 1, 2)) == {"0", "3", "4"}
    both = find("wider_face", root, parts=("train", "val"))
    assert {item.split for item in both if item.name.startswith("WIDER_val")} == {"test"}
    assert {item.split for item in both if item.name.startswith("WIDER_train")} == {"train", "val"}
    with pytest.raises(UsageError, match="no face is of the size"):
        find("wider_face", root, min_side=26, max_side=27)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("0--A/a.jpg\n1\n1 2 3\n", "line 3: expected x y w h"),
        ("0--A/a.jpg\nmany\n", "line 2: expected the number of faces of 0--A/a.jpg"),
        ("0--A/a.jpg\n2\n1 1 9 9 0 0 0 0 0 0\n", "line 4"),  # the end
        ("1 1 9 9 0 0 0 0 0 0\n", "line 1: expected the path of an image"),
        ("../a.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n", "line 1"),
        ("0--A/a.jpg\n1\n1 1 9 9 0 0 0 0 0 0\n1 1 9 9 0 0 0 0 0 0\n", "line 4: expected the path"),
    ],
)
def test_wider_face_names_the_malformed_line(tmp_path, content, problem):
    write(wider(tmp_path) / "wider_face_split" / "wider_face_train_bbx_gt.txt", content)
    with pytest.raises(UsageError, match=rf"wider_face_train_bbx_gt\.txt, {problem}"):
        find("wider_face", tmp_path)


# LFW


def lfw(root: Path, version: str = "lfw") -> Path:
    for i in range(40):
        for image in (1, 2):
            write(root / version / f"Person_{i}" / f"Person_{i}_{image:04d}.jpg")
    return root


def test_lfw_is_split_by_person(tmp_path):
    root = lfw(tmp_path)
    items = find("lfw", root)
    assert len(by_name(items)) == 80
    assert {item.box for item in items} == {(45, 45, 205, 205)}
    require_no_leak(grouped(items, lambda item: item.name.split("/")[1]), "train", "val")
    write(root / "peopleDevTest.txt", "2\nPerson_3\t2\nPerson_7\t2\n")
    items = find("lfw", root)
    require_no_leak(grouped(items, lambda item: item.name.split("/")[1]), "train", "val", "test")
    assert {item.name.split("/")[1] for item in items if item.split == "test"} == {"Person_3", "Person_7"}
    without = {item.name: item.split for item in find("lfw", root / "lfw")}  # given the people's folder itself
    assert set(without) == {item.name.removeprefix("lfw/") for item in items}


def test_lfw_refuses_what_is_not_lfw(tmp_path):
    root = lfw(tmp_path)
    write(root / "peopleDevTest.txt", "2\nPerson_3 2\n")
    with pytest.raises(UsageError, match=r"peopleDevTest\.txt, line 2: expected a person's name"):
        find("lfw", root)
    (root / "peopleDevTest.txt").unlink()
    lfw(root, "lfw-deepfunneled")
    with pytest.raises(UsageError, match="the same people twice"):
        find("lfw", root)
    write(root / "lfw" / "Person_0" / "other.jpg")
    with pytest.raises(UsageError, match="NAME_0001"):
        find("lfw", root / "lfw")
    (root / "none").mkdir()
    with pytest.raises(UsageError, match="no images"):
        find("lfw", root / "none")


def test_annotations_may_name_what_is_missing(tmp_path):
    """What is not there becomes an item, so that its reader rejects it and it is counted."""
    root = wider(tmp_path)
    (root / "WIDER_train" / "images" / "0--Event" / "0_Event_0.jpg").unlink()
    assert len(find("wider_face", root)) == 2 * 60


def test_datasets_that_are_elsewhere_say_what_they_need(tmp_path):
    for recipe in ("vggface2", "celeba", "aflw", "ls3d_w", "wider_face", "lfw", "zip", "tar", "webdataset", "parquet"):
        with pytest.raises(UsageError, match=r"give |unpack "):
            find(recipe, tmp_path)


# Archives


def zipped(place: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(place, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return place


def tarred(place: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(place, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return place


def contents(items: list[Item]) -> dict[str, bytes | str]:
    """Name -> bytes, or the reason why there are none."""
    results = list(archives.read(items))
    assert len(results) == len(by_name(items)) == len(items)
    return {
        item.name: str(result) if isinstance(result, BadImage) else result
        for item, result in zip(items, results, strict=True)
    }


IMAGES = (
    ("b/2.jpg", b"two"),
    ("a/1.PNG", b"one"),
    ("notes.txt", b"no"),
    ("inner.zip", b"no"),
    ("__MACOSX/x.png", b"no"),
)


@pytest.mark.parametrize(("recipe", "make"), [("zip", zipped), ("tar", tarred), ("webdataset", tarred)])
def test_archives_give_their_images(tmp_path, recipe, make):
    suffix = ".zip" if recipe == "zip" else ".tar"
    one = make(tmp_path / f"one{suffix}", *IMAGES)
    assert contents(find(recipe, one)) == {"b/2.jpg": b"two", "a/1.PNG": b"one"}
    make(tmp_path / f"another{suffix}", ("c.bmp", b"three"))
    items = find(recipe, tmp_path)
    assert contents(items) == {
        f"another{suffix}/c.bmp": b"three", f"one{suffix}/b/2.jpg": b"two", f"one{suffix}/a/1.PNG": b"one",
    }  # fmt: skip
    assert [item.name[0] for item in items] == ["a", "o", "o"]
    # One result for each, whatever the order in which they are asked for.
    assert list(archives.read(items[::-1])) == [b"one", b"two", b"three"]
    assert list(archives.read([items[1], items[0], items[1]])) == [b"two", b"three", b"two"]


def test_an_archive_is_opened_once_for_items_that_follow_one_another(tmp_path, monkeypatch):
    zipped(tmp_path / "a.zip", *((f"{i}.png", b"x") for i in range(5)))
    zipped(tmp_path / "b.zip", *((f"{i}.png", b"x") for i in range(5)))
    items = find("zip", tmp_path)
    opened, real = [], archives._open_zip
    monkeypatch.setattr(archives, "_open_zip", lambda file, uri: opened.append(uri) or real(file, uri))
    assert len(list(archives.read(items))) == 10
    assert [Path(uri).name for uri in opened] == ["a.zip", "b.zip"]


EVIL = ("../../up.jpg", "/root.jpg", "C:\\win.jpg", "C:drive.jpg", "a\\b.jpg", "a/../../b.jpg", "line\nbreak.jpg")


@pytest.mark.parametrize(("recipe", "make"), [("zip", zipped), ("tar", tarred), ("webdataset", tarred)])
def test_names_that_lead_elsewhere_are_no_ids(tmp_path, recipe, make):
    place = make(tmp_path / f"in.{recipe.replace('webdataset', 'tar')}", *((n, b"x") for n in EVIL), ("good.jpg", b"y"))
    found = contents(find(recipe, place))
    assert found.pop("good.jpg") == b"y"
    assert len(found) == len(EVIL)
    assert all(reason.startswith("unsafe name: ") and reason.isprintable() for reason in found.values())
    for name in found:
        assert not archives.is_unsafe(name)
        assert not name.startswith(".")
        assert name.isprintable()


@pytest.mark.parametrize(("recipe", "make"), [("zip", zipped), ("tar", tarred)])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_one_name_each_member_has_an_id(tmp_path, recipe, make):
    members = ("x.jpg", b"1"), ("x.jpg", b"2"), ("../y.jpg", b""), ("y.jpg", b"3"), ("x.jpg", b"4")
    found = contents(find(recipe, make(tmp_path / f"in.{recipe}", *members)))
    assert found == {"x.jpg": b"1", "x.jpg~2": b"2", "y.jpg": "unsafe name: ../y.jpg", "y.jpg~2": b"3", "x.jpg~3": b"4"}


def test_links_and_devices_are_not_followed(tmp_path):
    write(tmp_path / "secret.jpg", b"secret")
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, kind in (("sym", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("dev", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(info)
    link = zipfile.ZipInfo("sym.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret.jpg"))
    for recipe, names in (("tar", {"sym.jpg", "hard.jpg", "dev.jpg"}), ("zip", {"sym.jpg"})):
        found = contents(find(recipe, tmp_path / f"in.{recipe}"))
        assert set(found) == names
        assert all(reason.startswith("no plain file: ") for reason in found.values())


def test_bombs_do_not_go_off(tmp_path, monkeypatch):
    place = zipped(tmp_path / "in.zip", ("ratio.bmp", bytes(3 * 2**20)), ("flat.bmp", bytes(2**19)), ("good.jpg", b"y"))
    found = contents(find("zip", place))
    assert found["ratio.bmp"].startswith("archive bomb: ")
    assert found["flat.bmp"] == bytes(2**19)  # a small one may be all of one colour
    assert found["good.jpg"] == b"y"
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    stored = zipped(tmp_path / "stored.zip", ("a.bmp", bytes(1001)), ("b.bmp", bytes(1000)), method=zipfile.ZIP_STORED)
    plain = tarred(tmp_path / "in.tar", ("a.bmp", bytes(1001)), ("b.bmp", bytes(1000)))
    for recipe, archive, reason in (("zip", stored, "archive bomb: "), ("tar", plain, "too large: ")):
        found = contents(find(recipe, archive))
        assert found["a.bmp"].startswith(reason)
        assert found["b.bmp"] == bytes(1000)


def test_a_size_that_is_a_lie_is_not_believed(tmp_path):
    """The directory says 10 bytes where 3 MiB come out: no more than 10 are unpacked, and the checksum tells."""
    data = bytearray(zipped(tmp_path / "in.zip", ("a.bmp", bytes(3 * 2**20)), ("good.jpg", b"y")).read_bytes())
    for header, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(header) + offset, 10)
    found = contents(find("zip", write(tmp_path / "lie.zip", bytes(data))))
    assert found == {"a.bmp": found["a.bmp"], "good.jpg": b"y"}
    assert found["a.bmp"].startswith("damaged member: ")


def test_one_bad_member_of_a_zip_does_not_end_the_others(tmp_path):
    """Damaged, encrypted, of a method that is not read."""
    place = zipped(tmp_path / "in.zip", ("a.jpg", bytes(range(256))), ("b.jpg", b"secret"), ("c.jpg", b"y"))
    data = bytearray(place.read_bytes())
    start = data.index(b"a.jpg") + 5
    data[start : start + 20] = b"\xff" * 20
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    struct.pack_into("<H", data, second + 8, struct.unpack_from("<H", data, second + 8)[0] | 1)
    found = contents(find("zip", write(place, bytes(data))))
    assert {name: result[:9] for name, result in found.items()} == {
        "a.jpg": "damaged m", "b.jpg": "encrypted", "c.jpg": b"y",
    }  # fmt: skip
    other = zipped(tmp_path / "bz.zip", ("a.jpg", b"x"), method=zipfile.ZIP_BZIP2)
    assert contents(find("zip", other))["a.jpg"].startswith("compression: method 12")


@pytest.mark.parametrize("keep", [0, 1, 100, 513, 1536, 3000, 3072])
def test_truncated_tars_are_refused(tmp_path, keep):
    """Wherever they were cut: in a header, in the data, between two members, before the zeros at the end."""
    whole = tarred(tmp_path / "in.tar", *((f"{i}.jpg", bytes([i + 1]) * 700) for i in range(2))).read_bytes()
    assert len(find("tar", tmp_path)) == 2
    with pytest.raises(UsageError, match=r"cut\.tar: no tar file, or a truncated"):
        find("tar", write(tmp_path / "cut.tar", whole[:keep]))


def test_damage_in_the_middle_is_not_the_end_of_a_tar(tmp_path):
    data = bytearray(tarred(tmp_path / "in.tar", *((f"{i}.jpg", b"x") for i in range(3))).read_bytes())
    data[1024:1100] = b"\xff" * 76
    with pytest.raises(UsageError, match="damaged"):
        find("tar", write(tmp_path / "in.tar", bytes(data)))
    data[1024:1536] = tarfile.TarInfo("0.jpg").tobuf()
    data[1024 + 124 : 1024 + 136] = b"\xff" * 10 + b"\xf8\x00"  # minus 2048 bytes, so that the next is the first again
    checksum = tarfile.calc_chksums(bytes(data[1024:1536]))[0]
    data[1024 + 148 : 1024 + 156] = f"{checksum:06o}\0 ".encode()
    with pytest.raises(UsageError, match="damaged"):
        find("tar", write(tmp_path / "in.tar", bytes(data)))


def test_archives_that_are_none_are_refused(tmp_path):
    for recipe in ("zip", "tar", "parquet"):
        for content in (b"", b"no archive" * 100, b"PAR1" + b"\xff" * 600 + b"PAR1"):
            with pytest.raises(UsageError, match=rf"in\.{recipe}: no "):
                find(recipe, write(tmp_path / f"in.{recipe}", content))
    cut = zipped(tmp_path / "in.zip", ("a.jpg", b"x" * 1000)).read_bytes()[:-30]
    with pytest.raises(UsageError, match=r"in\.zip: no zip file, or a truncated one"):
        find("zip", write(tmp_path / "in.zip", cut))
    with pytest.raises(UsageError, match="its name ends in none of"):
        find("zip", tmp_path / "in.tar")
    with pytest.raises(UsageError, match="hold no"):
        find("zip", zipped(tmp_path / "in.zip", ("a.txt", b"x")))


@pytest.mark.parametrize(
    ("mode", "name", "command"), [("gz", "in.tar.gz", "gunzip -k in"), ("xz", "in.tar", "xz -dk in")]
)
def test_compressed_tars_are_refused_with_the_command_that_helps(tmp_path, mode, name, command):
    with tarfile.open(tmp_path / name, f"w:{mode}"):
        pass
    for recipe in ("tar", "webdataset"):
        with pytest.raises(UsageError, match=command):
            find(recipe, tmp_path)


def test_members_of_long_and_foreign_names(tmp_path):
    long, latin = "d/" * 80 + "x.jpg", "\udce9.jpg"
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name in (long, latin, "é.jpg", "./dot.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    for recipe in ("tar", "webdataset"):
        assert list(contents(find(recipe, tmp_path / "in.tar"))) == [long, "\\xe9.jpg", "é.jpg", "dot.jpg"]


def test_what_is_gone_or_changed_is_told(tmp_path):
    place = tarred(tmp_path / "in.tar", ("a.jpg", b"x"))
    items = find("tar", place)
    place.unlink()
    with pytest.raises(UsageError, match="not found"):
        list(archives.read(items))


# WebDataset


def samples(label) -> list[tuple[str, bytes]]:
    """Forty samples of ten people, two images each: faces and their masks."""
    members = []
    for i in range(40):
        key = f"set.v1/{i:04d}"
        members += [(f"{key}.face.jpg", b"%d" % i), (f"{key}.mask.png", b"m%d" % i)]
        members += [(f"{key}.json", json.dumps(label(i % 10)).encode()), (f"{key}.cls", b"%d\n" % (i % 10))]
    return members


def number(item: Item) -> int:
    return int(item.name.split("/")[-1].split(".")[0])


def test_webdataset_keeps_samples_and_groups_together(tmp_path):
    place = tarred(tmp_path / "shard-000.tar", *samples(lambda who: {"identity": f"p{who}", "n": who}))
    alone = find("webdataset", place)
    assert len(alone) == 80
    assert contents(alone)["set.v1/0007.face.jpg"] == b"7"
    require_no_leak(grouped(alone, number), "train", "val")
    assert {len(found) for found in grouped(alone, lambda item: number(item) % 10).values()} == {1, 2}
    for group, value in (("cls", "{}"), ("identity", "p{}"), ("n", "{}")):
        items = find("webdataset", place, group=group)
        assert {item.name: item.split for item in items} == {
            item.name: split_of(value.format(number(item) % 10)) for item in items
        }


@pytest.mark.parametrize("label", [lambda _: {}, lambda _: [1], lambda _: "text", lambda _: None])
def test_webdataset_says_which_sample_has_no_group(tmp_path, label):
    place = tarred(tmp_path / "shard.tar", *samples(label))
    with pytest.raises(UsageError, match=r"shard\.tar: sample set\.v1/0000 has no \.json with the key 'identity'"):
        find("webdataset", place, group="identity")
    bare = tarred(tmp_path / "bare.tar", ("a.jpg", b""), ("b.cls", b"1"))
    with pytest.raises(UsageError, match=r"sample a has no \.cls"):
        find("webdataset", bare, group="cls")


# Parquet


def parquet(place: Path, rows: int = 100, *, binary: bool = False, start: int = 0) -> Path:
    """Hugging Face's layout: ten people, in groups of 35 rows."""
    kind = pa.binary() if binary else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [
        b"image %d" % i if binary else {"bytes": b"image %d" % i, "path": None} for i in range(start, start + rows)
    ]
    columns = {
        "name": pa.array([f"face {i}" for i in range(start, start + rows)]),
        "image": pa.array(images, kind),
        "who": pa.array([i % 10 for i in range(start, start + rows)]),
    }
    pq.write_table(pa.table(columns), place, row_group_size=35)
    return place


@pytest.mark.parametrize("binary", [True, False])
def test_parquet_gives_its_rows(tmp_path, binary):
    place = parquet(tmp_path / "in.parquet", binary=binary)
    items = find("parquet", place)
    assert contents(items) == {f"{i:08d}": b"image %d" % i for i in range(100)}
    assert {item.split for item in items} == {""}
    some = [items[i] for i in (3, 40, 41, 99, 34, 0, 70)]  # also backwards
    assert list(archives.read(some)) == [b"image %d" % i for i in (3, 40, 41, 99, 34, 0, 70)]
    named = find("parquet", place, id_column="name", group_column="who")
    assert [item.name for item in named] == [f"face {i}" for i in range(100)]
    assert [item.split for item in named] == [split_of(str(i % 10)) for i in range(100)]


def test_parquet_files_of_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(2):
        parquet(tmp_path / "data" / f"train-{i}.parquet", 40, start=40 * i)
    items = find("parquet", tmp_path)
    assert [items[0].name, items[-1].name] == ["data/train-0.parquet/00000000", "data/train-1.parquet/00000039"]
    assert list(contents(items).values()) == [b"image %d" % i for i in range(80)]


def test_rows_without_bytes_are_rejected_alone(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.jpg"}, None], kind)
    table = pa.table({"image": images, "id": pa.array(["../a", "", "a"])})
    pq.write_table(table, tmp_path / "in.parquet")
    found = list(contents(find("parquet", tmp_path / "in.parquet")).values())
    assert found[0] == b"x"
    assert all(reason.startswith("no bytes: ") for reason in found[1:])
    assert contents(find("parquet", tmp_path / "in.parquet", id_column="id")) == {
        "a": "unsafe name: ../a", "unnamed": "unsafe name: ", "a~2": found[2],
    }  # fmt: skip


def test_no_more_of_a_parquet_file_is_read_than_the_images_asked_for(tmp_path):
    noise = np.random.default_rng(0)
    table = pa.table(
        {
            "image": pa.array([noise.bytes(100_000) for _ in range(40)]),
            "other": pa.array([noise.bytes(100_000) for _ in range(40)]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=10, compression="none", use_dictionary=False)
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer):
            nonlocal read
            read += (count := super().readinto(buffer))
            return count

        def read(self, size=-1):
            nonlocal read
            read += len(data := super().read(size))
            return data

    items = find("parquet", tmp_path / "in.parquet")
    with Counting(tmp_path / "in.parquet") as file:
        assert len(archives._Parquet(file, "in.parquet").fetch(items[25].member)) == 100_000
    assert read < 3_000_000  # of 8


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"column": "pixels"}, r"no column 'pixels' of images.* it has name \(string\)"),
        ({"column": "name"}, "no column 'name' of images"),
        ({"id_column": "label"}, "no column 'label': it has name, image, who"),
    ],
)
def test_parquet_says_which_columns_there_are(tmp_path, options, problem):
    with pytest.raises(UsageError, match=problem):
        find("parquet", parquet(tmp_path / "in.parquet"), **options)


def test_a_damaged_row_group_is_told(tmp_path):
    place = parquet(tmp_path / "in.parquet", 5000, binary=True)
    items = find("parquet", place)
    data = bytearray(place.read_bytes())
    data[4:3000] = b"\xff" * 2996
    write(place, bytes(data))
    with pytest.raises(UsageError, match="damaged"):
        list(archives.read(items))


# All of them


def test_nothing_depends_on_the_order_in_which_files_were_made(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    for folder, order in (("a", names), ("b", names[::-1])):
        for name in order:
            write(tmp_path / folder / name)
            zipped(tmp_path / folder / f"{name}.zip", ("x.png", b"x"))
    for recipe in ("folder", "zip"):
        a, b = (find(recipe, tmp_path / folder) for folder in "ab")
        assert [replace(item, stamp="") for item in a] == [
            replace(item, uri=item.uri.replace("/b/", "/a/"), stamp="") for item in b
        ]
        assert len(a) == 20


def test_every_recipe_is_in_the_guide():
    guide = (ROOT / "docs" / "datasets.md").read_text()
    assert {recipe for recipe in RECIPES if f"--recipe {recipe} " not in guide} == set()


def test_prepare_takes_the_faces_of_crowds(ray_local, tmp_path):
    """Photographs of three faces each -> crops with their splits; the boxes and options decide what is in the set."""
    root, rows = tmp_path / "WIDER", []
    for i in range(30):
        name = f"0--Crowd/{i}.png"
        photograph = np.concatenate([sample_face(0, 3 * i + k, 24) for k in range(3)], axis=1)
        write(root / "WIDER_train" / "images" / name, encode_png(photograph))
        faces = "".join(f"{24 * k + 2} 2 19 19 0 0 0 0 0 0\n" for k in range(3))
        rows.append(f"{name}\n4\n{faces}300 300 20 20 0 0 0 0 0 0\n")  # the fourth lies outside
    write(root / "wider_face_split" / "wider_face_train_bbx_gt.txt", "".join(rows))
    options = dict(input=str(root), output=str(tmp_path / "set"), recipe="wider_face", rows_per_shard=50)
    summary = prepare(build(PrepareConfig, **options))
    assert (summary["n"], summary["n_rejected"], summary["rejected_no_face"]) == (90, 30, 30)
    read = {row["id"]: row for row in find_source(str(tmp_path / "set"), "faces").read(FACE_SCHEMA.names)}
    for i in range(30):
        for k in range(3):
            row = read[f"WIDER_train/0--Crowd/{i}.png#{k}"]
            assert np.array_equal(decode(row["image"]), sample_face(0, 3 * i + k, 24))
            assert row["split"] == split_of(f"wider_face/0--Crowd/{i}.png")
    assert {summary["n_train"], summary["n_val"]} == {
        sum(row["split"] == split for row in read.values()) for split in ("train", "val")
    }
    assert summary["n_val"] > 0
    with pytest.raises(UsageError, match=r"begun with wider_face\.max_side 48, not 32: give the same"):
        prepare(build(PrepareConfig, **options, wider_face={"max_side": 32}))


def test_prepare_takes_archives_as_it_takes_folders(ray_local, tmp_path):
    """Of one content whether it lies in a folder, a zip or a tar; hostile members are rows of rejected.parquet."""
    faces = [(f"a/{i}.png", encode_png(sample_face(0, i, 24))) for i in range(12)]
    for name, data in faces:
        write(tmp_path / "folder" / name, data)
    hostile = [("../out.png", faces[0][1]), ("bomb.bmp", bytes(8 * 2**20)), ("bad.jpg", b"no image")]
    places = {
        "folder": tmp_path / "folder",
        "zip": zipped(tmp_path / "in.zip", *faces[:5], *hostile, *faces[5:]),
        "tar": tarred(tmp_path / "in.tar", *faces[:5], hostile[0], hostile[2], *faces[5:]),
    }
    found, rejected = {}, {}
    for recipe, place in places.items():
        out = str(tmp_path / f"{recipe}_set")
        prepare(build(PrepareConfig, input=str(place), output=out, recipe=recipe, rows_per_shard=5))
        rows = find_source(out, "faces").read(("id", "image", "split", "sha256"))
        found[recipe] = sorted((row["id"], row["image"], row["split"], row["sha256"]) for row in rows)
        table = Path(out) / "rejected.parquet"
        rows = pq.read_table(table).to_pylist() if table.exists() else []
        rejected[recipe] = {row["id"]: row["reason"].split(":")[0] for row in rows}
    assert [(name, data) for name, data, _, _ in found["folder"]] == sorted(faces)
    assert found["zip"] == found["tar"] == found["folder"]
    assert rejected["folder"] == {}
    assert rejected["tar"] == {"out.png": "unsafe name", "bad.jpg": "unreadable"}
    assert rejected["zip"] == rejected["tar"] | {"bomb.bmp": "archive bomb"}
    assert not (tmp_path / "out.png").exists()


def test_the_faces_of_one_photograph_decode_it_once(tmp_path, monkeypatch):
    write(tmp_path / "a.png", encode_png(sample_face(0, 0, 64)))
    write(tmp_path / "b.png", encode_png(sample_face(0, 1, 64)))
    items = [
        Item(f"{name}#{k}", str(tmp_path / name), box=(k, 0, 40 + k, 40)) for name in ("a.png", "b.png") for k in (0, 1)
    ]
    decoded = []
    monkeypatch.setattr(source, "read_image", lambda data: decoded.append(data) or read_image(data))
    rows = list(source.read(source.Unit("s", "folder", tuple(items)), FACE_SCHEMA.names))
    assert len(decoded) == 2
    for row, item in zip(rows, items, strict=True):
        whole = sample_face(0, int(item.name[0] == "b"), 64)
        assert np.array_equal(decode(row["image"]), whole[:40, item.box[0] : item.box[2]])


def test_finding_is_lazy(tmp_path):
    """The first items of a folder of archives come before the last is opened."""
    zipped(tmp_path / "a.zip", ("x.png", b"x"))
    write(tmp_path / "b.zip", b"no archive")
    found = RECIPES["zip"]().find(str(tmp_path))
    assert next(found).name == "a.zip/x.png"
    with pytest.raises(UsageError, match=r"b\.zip"):
        next(found)
