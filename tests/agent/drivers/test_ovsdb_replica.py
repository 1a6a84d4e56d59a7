from agent.drivers.ovsdb_rpc import Kind, Replica, decode, encode


def replica_with(row: dict[str, object], *, table: str = "Bridge") -> Replica:
    replica = Replica()
    replica.update({table: {"u1": {"initial": row}}})
    return replica


def test_columns_left_out_have_their_defaults() -> None:
    row = replica_with({"name": "tn1"}, table="Interface").tables["Interface"]["u1"]
    assert row == {
        "name": "tn1",
        "type": "",
        "options": {},
        "ofport": None,
        "ofport_request": None,
        "error": None,
        "external_ids": {},
    }
    assert replica_with({}, table="Open_vSwitch").tables["Open_vSwitch"]["u1"]["cur_cfg"] == 0


def test_a_set_changes_by_symmetric_difference() -> None:
    replica = replica_with({"name": "br-int", "ports": ["set", [["uuid", "a"], ["uuid", "b"]]]})
    touched = replica.update({"Bridge": {"u1": {"modify": {"ports": ["set", [["uuid", "b"], ["uuid", "c"]]]}}}})
    assert replica.tables["Bridge"]["u1"]["ports"] == {"a", "c"}
    assert touched == {("Bridge", "ports")}
    replica.update({"Bridge": {"u1": {"modify": {"ports": ["uuid", "a"]}}}})
    assert replica.tables["Bridge"]["u1"]["ports"] == {"c"}


def test_a_map_changes_by_key() -> None:
    replica = replica_with({"name": "br-int", "external_ids": ["map", [["a", "1"], ["b", "2"]]]})
    replica.update({"Bridge": {"u1": {"modify": {"external_ids": ["map", [["a", "1"], ["b", "3"], ["c", "4"]]]}}}})
    assert replica.tables["Bridge"]["u1"]["external_ids"] == {"b": "3", "c": "4"}


def test_optional_and_plain_columns_are_replaced() -> None:
    replica = replica_with({"name": "tn1", "ofport": 7}, table="Interface")
    replica.update({"Interface": {"u1": {"modify": {"ofport": ["set", []], "error": "gone", "type": "internal"}}}})
    row = replica.tables["Interface"]["u1"]
    assert (row["ofport"], row["error"], row["type"]) == (None, "gone", "internal")


def test_rows_come_and_go() -> None:
    replica = replica_with({"name": "br-int"})
    replica.update({"Bridge": {"u1": {"delete": None}, "u2": {"insert": {"name": "br-x"}}}})
    assert [row["name"] for row in replica.tables["Bridge"].values()] == ["br-x"]


def test_encoding_is_the_inverse_of_decoding() -> None:
    for kind, value in (
        (Kind.MAP, {"a": "1", "b": "2"}),
        (Kind.SET, frozenset({"x", "y"})),
        (Kind.OPTIONAL, None),
        (Kind.OPTIONAL, 5),
        (Kind.STRING, "text"),
        (Kind.INTEGER, 0),
    ):
        assert decode(kind, encode(kind, value)) == value
