// Products of two signed numbers of eight bits, for ECP5: a multiplier block or tables (techmap of Yosys).

// At the upper ends of the block's inputs: below them are zeros, which take no wires, where sign bits above would.
module \$__block_multiplier (A, B, Y);
  parameter A_SIGNED = 1;
  parameter B_SIGNED = 1;
  parameter A_WIDTH = 8;
  parameter B_WIDTH = 8;
  parameter Y_WIDTH = 16;
  input [7:0] A, B;
  output [15:0] Y;
  wire [35:0] product;
  MULT18X18D block (
    .A17(A[7]), .A16(A[6]), .A15(A[5]), .A14(A[4]), .A13(A[3]), .A12(A[2]), .A11(A[1]), .A10(A[0]), .A9(1'b0),
    .A8(1'b0), .A7(1'b0), .A6(1'b0), .A5(1'b0), .A4(1'b0), .A3(1'b0), .A2(1'b0), .A1(1'b0), .A0(1'b0),
    .B17(B[7]), .B16(B[6]), .B15(B[5]), .B14(B[4]), .B13(B[3]), .B12(B[2]), .B11(B[1]), .B10(B[0]), .B9(1'b0),
    .B8(1'b0), .B7(1'b0), .B6(1'b0), .B5(1'b0), .B4(1'b0), .B3(1'b0), .B2(1'b0), .B1(1'b0), .B0(1'b0),
    .C17(1'b0), .C16(1'b0), .C15(1'b0), .C14(1'b0), .C13(1'b0), .C12(1'b0), .C11(1'b0), .C10(1'b0), .C9(1'b0),
    .C8(1'b0), .C7(1'b0), .C6(1'b0), .C5(1'b0), .C4(1'b0), .C3(1'b0), .C2(1'b0), .C1(1'b0), .C0(1'b0),
    .SIGNEDA(1'b1), .SIGNEDB(1'b1), .SOURCEA(1'b0), .SOURCEB(1'b0),
    .P35(product[35]), .P34(product[34]), .P33(product[33]), .P32(product[32]), .P31(product[31]), .P30(product[30]),
    .P29(product[29]), .P28(product[28]), .P27(product[27]), .P26(product[26]), .P25(product[25]), .P24(product[24]),
    .P23(product[23]), .P22(product[22]), .P21(product[21]), .P20(product[20]), .P19(product[19]), .P18(product[18]),
    .P17(product[17]), .P16(product[16]), .P15(product[15]), .P14(product[14]), .P13(product[13]), .P12(product[12]),
    .P11(product[11]), .P10(product[10]), .P9(product[9]), .P8(product[8]), .P7(product[7]), .P6(product[6]),
    .P5(product[5]), .P4(product[4]), .P3(product[3]), .P2(product[2]), .P1(product[1]), .P0(product[0])
  );
  assign Y = product[35:20];
endmodule

// 8 * 8 bits in about 80 tables: a carry cell has room for two of the partial products that it adds.
module \$__table_multiplier (A, B, Y);
  parameter A_SIGNED = 1;
  parameter B_SIGNED = 1;
  parameter A_WIDTH = 8;
  parameter B_WIDTH = 8;
  parameter Y_WIDTH = 16;
  input [7:0] A, B;
  output [15:0] Y;
  wire signed [9:0] r0, r1, r2, r3;
  table_pair #(.MINUS(0)) p0 (.a(A), .low(B[0]), .high(B[1]), .y(r0));
  table_pair #(.MINUS(0)) p1 (.a(A), .low(B[2]), .high(B[3]), .y(r1));
  table_pair #(.MINUS(0)) p2 (.a(A), .low(B[4]), .high(B[5]), .y(r2));
  table_pair #(.MINUS(1)) p3 (.a(A), .low(B[6]), .high(B[7]), .y(r3));
  // r3 lacks one: r2 + 4 (r3 + 1) = r2 - 4 ~r3.
  wire signed [9:0] not_r3 = ~r3;
  wire signed [11:0] lower = (r0 >>> 2) + r1;
  wire signed [11:0] upper = (r2 >>> 2) - not_r3;
  wire signed [11:0] upper_whole = {upper[9:0], r2[1:0]};
  wire signed [11:0] top = (lower >>> 2) + upper_whole;
  assign Y = {top, lower[1:0], r0[1:0]};
endmodule

// a * low + 2 a * high, or with MINUS a * low - 2 a * high - 1, in ten bits.
module table_pair #(parameter MINUS = 0) (input [7:0] a, input low, high, output [9:0] y);
  wire [9:0] once = {{2{a[7]}}, a};
  wire [9:0] twice = {a[7], a, 1'b0};
  wire [5:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < 5; i = i + 1) begin : cell_
      // (A & B) + (C & D), or ~(A & B) + (C & D): the table of A and B alone is that for C = D = 0.
      CCU2C #(
        .INIT0(MINUS ? 16'h8777 : 16'h7888), .INIT1(MINUS ? 16'h8777 : 16'h7888), .INJECT1_0("NO"), .INJECT1_1("NO")
      ) adder (
        .CIN(carry[i]), .COUT(carry[i + 1]),
        .A0(twice[2 * i]), .B0(high), .C0(once[2 * i]), .D0(low), .S0(y[2 * i]),
        .A1(twice[2 * i + 1]), .B1(high), .C1(once[2 * i + 1]), .D1(low), .S1(y[2 * i + 1])
      );
    end
  endgenerate
endmodule
